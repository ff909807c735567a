// Writes dist/: one ES module for everything, minified, and the types of its sources.

import { spawnSync } from "node:child_process";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { buildSync } from "esbuild";
import { minify } from "terser";

const root = dirname(fileURLToPath(import.meta.url));
rmSync(join(root, "dist"), { recursive: true, force: true });
const compiler = join(root, "node_modules", "typescript", "bin", "tsc");
const checked = spawnSync(process.execPath, [compiler, "--project", root], { stdio: "inherit" });
if (checked.status !== 0) process.exit(1);
// Names of the client alone, which nobody outside uses.
const internal =
  "controller ended failed fallBack first forget frames interrupt isBehind know life onFrame onRun plan plans renewAt settle source take wake wantsSnapshot wasAttached";
const bundle = buildSync({
  absWorkingDir: root,
  entryPoints: ["src/index.ts"],
  bundle: true,
  minifySyntax: true,
  format: "esm",
  target: "es2022",
  mangleProps: new RegExp(`^(${internal.replaceAll(" ", "|")})$`),
  write: false,
});
// Its short names compress better than those of esbuild.
const { code } = await minify(bundle.outputFiles[0].text, { module: true, ecma: 2022, compress: { passes: 2 } });
mkdirSync(join(root, "dist"), { recursive: true });
writeFileSync(join(root, "dist", "index.js"), code);
