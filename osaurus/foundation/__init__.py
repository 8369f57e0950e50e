"""Apple's on-device model, through `apple-fm-sdk`, where macOS has it."""
