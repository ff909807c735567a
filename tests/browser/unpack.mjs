// Unpacks the browser of the package, compressed by Brotli, into the folder TMPDIR.
import chromium from "@sparticuz/chromium";

chromium.setGraphicsMode = false;
await chromium.executablePath();
