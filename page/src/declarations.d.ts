declare module "virtual:icons" {
  const shapes: Record<string, Array<[tag: string, attributes: Record<string, string>]>>;
  export default shapes;
}
declare module "*.css";

/** The parser alone, whose package has no entry for it. */
declare module "streaming-markdown-html/parser" {
  type Kind = number;
  export const DOCUMENT: Kind, HEADING_1: Kind, HEADING_2: Kind, HEADING_3: Kind, CODE_BLOCK: Kind, CODE_FENCE: Kind;
  export const LINK: Kind, RAW_URL: Kind, IMAGE: Kind, CHECKBOX: Kind, TABLE: Kind, TABLE_ROW: Kind, TABLE_CELL: Kind;
  export const HREF: Kind, SRC: Kind, LANG: Kind, CHECKED: Kind, START: Kind, TITLE: Kind, ALT: Kind;
  interface Renderer {
    data: null;
    addToken(data: null, token: Kind): void;
    endToken(data: null): void;
    addText(data: null, text: string): void;
    setAttr(data: null, attribute: Kind, value: string): void;
  }
  interface Parser {
    renderer: Renderer;
  }
  export function parser(renderer: Renderer): Parser;
  export function parserWrite(parser: Parser, text: string): void;
  export function parserEnd(parser: Parser): void;
  export function tokenToTags(token: Kind): string[];
}
