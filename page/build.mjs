// Builds the page into src/reattach/http/page/, which is committed. `--check` builds nothing and fails if the
// committed files differ from what these sources give.

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const root = dirname(fileURLToPath(import.meta.url));
const target = join(root, "..", "src", "reattach", "http", "page");
const read = (...path) => readFileSync(join(root, ...path), "utf-8");

const compiler = join(root, "node_modules", "typescript", "bin", "tsc");
const checked = spawnSync(process.execPath, [compiler, "--project", root], { stdio: "inherit" });
if (checked.status !== 0) process.exit(1);

// The icons as data, because the page may not make elements from text.
const icons = {
  name: "icons",
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /^virtual:icons$/ }, () => ({ path: "icons", namespace: "icons" }));
    onLoad({ filter: /.*/, namespace: "icons" }, () => {
      const shapes = {};
      for (const file of readdirSync(join(root, "src", "icons")).sort()) {
        if (!file.endsWith(".svg")) continue;
        const [, inside] = /<svg[^>]*>([^]*)<\/svg>/.exec(read("src", "icons", file));
        shapes[basename(file, ".svg")] = [...inside.matchAll(/<(\w+)((?:\s+[\w-]+="[^"]*")*)/g)].map(([, tag, given]) => [
          tag,
          Object.fromEntries([...given.matchAll(/([\w-]+)="([^"]*)"/g)].map(([, name, value]) => [name, value])),
        ]);
      }
      return { contents: JSON.stringify(shapes), loader: "json" };
    });
  },
};

const { outputFiles } = await build({
  absWorkingDir: root,
  entryPoints: { app: "src/main.tsx" },
  outdir: "out",
  bundle: true,
  minify: true,
  format: "esm",
  target: ["chrome123", "firefox120", "safari17.5"],
  legalComments: "linked",
  charset: "utf8",
  plugins: [icons],
  write: false,
});

const files = new Map(outputFiles.map(({ path, text }) => [basename(path), text]));
// One file has all licences.
const linked = files.get("app.js.LEGAL.txt") ?? "";
files.delete("app.js.LEGAL.txt");
files.set("app.js", files.get("app.js").replace(/\/\*! For license information[^]*?\*\/\n?/, "/*! Licenses: licenses.txt */\n"));
const packages = ["preact", "@preact/signals", "@preact/signals-core", "streaming-markdown-html"];
files.set(
  "licenses.txt",
  [
    "The page of Reattach contains the following works.\n",
    ...packages.map((name) => `${name}\n\n${read("node_modules", name, "LICENSE")}`),
    `lucide (icons)\n\n${read("src", "icons", "LICENSE")}`,
    linked && `Comments of the sources\n\n${linked}`,
  ]
    .filter(Boolean)
    .map((text) => text.trimEnd() + "\n")
    .join(`\n${"-".repeat(80)}\n\n`),
);
files.set("icon.svg", read("src", "icon.svg"));
// Its address changes with its content, so browsers keep each file for good.
const versioned = (html) =>
  html.replace(/page\/([\w.]+)\?v=/g, (all, name) => all + createHash("sha256").update(files.get(name)).digest("hex").slice(0, 16));
files.set("index.html", versioned(read("src", "index.html")));

let differ = [];
mkdirSync(target, { recursive: true });
for (const [name, text] of files) {
  const path = join(target, name);
  if (existsSync(path) && readFileSync(path, "utf-8") === text) continue;
  differ.push(name);
  if (!process.argv.includes("--check")) writeFileSync(path, text);
}
const extra = readdirSync(target).filter((name) => !files.has(name));
if (process.argv.includes("--check")) {
  if (differ.length || extra.length) {
    console.error(`The committed page differs from its sources: ${[...differ, ...extra].join(", ")}.`);
    console.error("Run `node page/build.mjs` and commit src/reattach/http/page/.");
    process.exit(1);
  }
} else {
  let sum = 0;
  for (const [name, text] of files) {
    const size = gzipSync(text, { level: 9 }).length;
    if (name !== "licenses.txt") sum += size;
    console.log(`${name}: ${Buffer.byteLength(text)} bytes, ${size} compressed`);
  }
  console.log(`in all: ${sum} compressed, without the licenses`);
}
