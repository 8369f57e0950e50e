"""Having the operating system start the server: at boot, at login, or when somebody connects."""
