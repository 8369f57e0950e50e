// Print the path of the packaged Chromium, which the package unpacks on first use.
import chromium from "@sparticuz/chromium";

console.log(await chromium.executablePath());
