import { effect, type ReadonlySignal } from "@preact/signals";
import { render, type VNode } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";
import { markdownInto, type MarkdownWriter } from "../markdown";

interface Properties {
  /** A text that grows at its end; if it changes in another way, it is written anew. */
  text: ReadonlySignal<string>;
  /** Whether the text is whole. */
  isWhole: ReadonlySignal<boolean>;
  /** Elements in the text, each after a number of its characters, in order. */
  marks?: ReadonlySignal<Array<{ at: number; show: () => VNode }>>;
}

interface Written {
  text: string;
  marks: number;
  writer: MarkdownWriter;
  isEnded: boolean;
}

/** Markdown that is shown while it comes. */
export function Markdown({ text, isWhole, marks }: Properties) {
  const element = useRef<HTMLDivElement>(null);
  const written = useRef<Written | null>(null);
  const write = (): void => {
    const whole = text.value;
    const isEnded = isWhole.value;
    const all = marks?.value ?? [];
    const root = element.current!;
    const before = written.current;
    const goesOn = before && (before.isEnded ? before.text === whole : whole.startsWith(before.text));
    if (!goesOn) root.replaceChildren();
    const state = goesOn ? before : { text: "", marks: 0, writer: markdownInto(root), isEnded: false };
    written.current = state;
    if (state.isEnded) return;
    for (const { at, show } of all.slice(state.marks)) {
      writeTo(state, whole.slice(0, at));
      const place = document.createElement("span");
      render(show(), place);
      state.writer.insert(place);
      state.marks += 1;
    }
    writeTo(state, whole);
    if (isEnded) {
      state.writer.end();
      state.isEnded = true;
    }
  };
  // The same place may get the text of another moment.
  useLayoutEffect(() => effect(write), [text, isWhole, marks]);
  return <div ref={element} class="markdown" />;
}

function writeTo(state: Written, text: string): void {
  if (text.length <= state.text.length) return;
  state.writer.write(text.slice(state.text.length));
  state.text = text;
}
