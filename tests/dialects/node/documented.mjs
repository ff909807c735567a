// The programs of the documentation's pages, as modules.
import { readFileSync, renameSync, writeFileSync } from "node:fs";

/** Returns the block of a page in docs/ that exports `name`. */
export async function documented(page, name) {
    const text = readFileSync(new URL(`../../../docs/${page}`, import.meta.url), "utf-8");
    const blocks = [...text.matchAll(/```js\n([^]*?)```/g)].map((block) => block[1]);
    const exported = new RegExp(`export (const|async function) ${name}\\b`);
    const file = new URL(`node_modules/.${name}.mjs`, import.meta.url);
    const own = new URL(`${file.href}.${process.pid}`);
    writeFileSync(own, blocks.find((code) => exported.test(code)));
    renameSync(own, file);
    return await import(file.href);
}
