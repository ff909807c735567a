/** Markdown that comes in pieces, as elements. Another library would change this file alone. */

import { isSafeUrl } from "streaming-markdown-html";
import * as markdown from "streaming-markdown-html/parser";

export interface MarkdownWriter {
  /** Add the next piece of the text. */
  write(text: string): void;
  /** Put an element where the text goes on. */
  insert(element: Element): void;
  /** Show what was held back until more came. */
  end(): void;
}

const ATTRIBUTES: Record<number, string> = {
  [markdown.HREF]: "href",
  [markdown.SRC]: "src",
  [markdown.CHECKED]: "checked",
  [markdown.START]: "start",
  [markdown.TITLE]: "title",
};

/**
 * Write Markdown into an element, with elements only, so that no text becomes HTML.
 *
 * Images are links: the browser loads nothing that a model names. A link has no scheme that runs code.
 */
export function markdownInto(root: HTMLElement): MarkdownWriter {
  const open: HTMLElement[] = [root];
  const top = (): HTMLElement => open[open.length - 1]!;

  const rowParent = (table: HTMLElement): HTMLElement => {
    const name = table.querySelector("thead") ? "tbody" : "thead";
    const found = table.querySelector<HTMLElement>(`:scope > ${name}`);
    if (found) return found;
    const made = document.createElement(name);
    table.append(made);
    return made;
  };

  const elementsOf = (token: number): [parent: HTMLElement, element: HTMLElement] => {
    const parent = top();
    switch (token) {
      case markdown.IMAGE:
      case markdown.LINK:
      case markdown.RAW_URL: {
        const link = document.createElement("a");
        link.target = "_blank";
        link.rel = "noopener noreferrer";
        if (token === markdown.IMAGE) link.className = "image-link";
        return [parent, link];
      }
      case markdown.CHECKBOX: {
        const box = document.createElement("input");
        box.type = "checkbox";
        box.disabled = true;
        box.ariaLabel = "task";
        return [parent, box];
      }
      case markdown.CODE_BLOCK:
      case markdown.CODE_FENCE: {
        const block = document.createElement("pre");
        block.tabIndex = 0;
        parent.append(block);
        return [block, document.createElement("code")];
      }
      case markdown.TABLE: {
        const scroller = document.createElement("div");
        scroller.className = "table";
        scroller.tabIndex = 0;
        parent.append(scroller);
        return [scroller, document.createElement("table")];
      }
      case markdown.TABLE_ROW:
        return [rowParent(parent), document.createElement("tr")];
      case markdown.TABLE_CELL:
        return [parent, document.createElement(parent.parentElement?.localName === "thead" ? "th" : "td")];
      case markdown.HEADING_1:
      case markdown.HEADING_2:
        // The page has headings of its own above.
        return [parent, document.createElement("h3")];
      case markdown.HEADING_3:
        return [parent, document.createElement("h4")];
      default:
        return [parent, document.createElement(markdown.tokenToTags(token)[0] ?? "span")];
    }
  };

  /** The last link, if its address has an open bracket: the parser takes the first bracket as its end. */
  let unclosed: HTMLElement | null = null;

  const parser = markdown.parser({
    data: null,
    addToken(_, token: number) {
      if (token === markdown.DOCUMENT) return;
      unclosed = null;
      const [parent, element] = elementsOf(token);
      parent.append(element);
      open.push(element);
    },
    endToken() {
      if (open.length > 1) open.pop();
    },
    addText(_, text: string) {
      if (unclosed && unclosed !== top() && text.startsWith(")")) {
        const address = unclosed.getAttribute("href");
        if (address !== null) unclosed.setAttribute("href", `${address})`);
        unclosed.title &&= `${unclosed.title})`;
        text = text.slice(1);
      }
      unclosed = null;
      top().append(text);
    },
    setAttr(_, attribute: number, value: string) {
      const element = top();
      const name = ATTRIBUTES[attribute];
      if (attribute === markdown.ALT) {
        element.textContent = value;
      } else if (attribute === markdown.LANG) {
        element.parentElement!.dataset.language = value.replace(/^language-/, "");
      } else if (name === "src" || name === "href") {
        if (value.includes("(") && !value.includes(")")) unclosed = element;
        if (!isSafeUrl(value)) return;
        element.setAttribute("href", value);
        element.title ||= value;
        if (name === "src" && !element.textContent) element.textContent = value.slice(0, 100);
      } else if (name) {
        element.setAttribute(name, value);
      }
    },
  });

  return {
    write: (text) => markdown.parserWrite(parser, text),
    insert: (element) => top().append(element),
    end: () => markdown.parserEnd(parser),
  };
}
