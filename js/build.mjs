// Writes dist/: one ES module for everything, minified, and the types of its sources.

import { spawnSync } from "node:child_process";
import { rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { buildSync } from "esbuild";

const root = dirname(fileURLToPath(import.meta.url));
rmSync(join(root, "dist"), { recursive: true, force: true });
const compiler = join(root, "node_modules", "typescript", "bin", "tsc");
const checked = spawnSync(process.execPath, [compiler, "--project", root], { stdio: "inherit" });
if (checked.status !== 0) process.exit(1);
// Names of the client alone, which nobody outside uses.
const internal =
  "controller ended failed first frames interrupt isBehind keep know life onFrame onRun plan plans renewAt settle source take wake wantsSnapshot wasAttached";
buildSync({
  absWorkingDir: root,
  entryPoints: ["src/index.ts"],
  outfile: "dist/index.js",
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  mangleProps: new RegExp(`^(${internal.replaceAll(" ", "|")})$`),
});
