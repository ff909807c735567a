import { effect, type ReadonlySignal } from "@preact/signals";
import { useLayoutEffect, useRef } from "preact/hooks";
import { markdownInto, type MarkdownWriter } from "../markdown";

interface Properties {
  /** A text that grows at its end; if it changes in another way, it is written anew. */
  text: ReadonlySignal<string>;
  /** Whether the text is whole. */
  isWhole: ReadonlySignal<boolean>;
}

/** Markdown that is shown while it comes. */
export function Markdown({ text, isWhole }: Properties) {
  const element = useRef<HTMLDivElement>(null);
  const written = useRef<{ text: string; writer: MarkdownWriter; isEnded: boolean } | null>(null);
  const write = (): void => {
    const whole = text.value;
    const isEnded = isWhole.value;
    const root = element.current!;
    const before = written.current;
    const goesOn = before && (before.isEnded ? before.text === whole : whole.startsWith(before.text));
    if (!goesOn) root.replaceChildren();
    const state = goesOn ? before : { text: "", writer: markdownInto(root), isEnded: false };
    written.current = state;
    if (state.isEnded) return;
    if (whole.length > state.text.length) state.writer.write(whole.slice(state.text.length));
    state.text = whole;
    if (isEnded) {
      state.writer.end();
      state.isEnded = true;
    }
  };
  // The same place may get the text of another moment.
  useLayoutEffect(() => effect(write), [text, isWhole]);
  return <div ref={element} class="markdown" />;
}
