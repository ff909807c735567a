import { useSignal, type ReadonlySignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { Block, Transcript } from "../chat/transcript";
import { count } from "../format";
import { Fault } from "../parts/fault";
import { Icon } from "../parts/icon";
import { Markdown } from "../parts/markdown";
import { problemOf, type RunFacts } from "./facts";
import type { Subject } from "./subject";

const NEAR_PX = 60;
const SAID_CHARS = 600;

/** The messages as of the moment. */
export function AnswerPane({ subject, facts }: { subject: Subject; facts: RunFacts }) {
  const { answer } = subject;
  const error = answer.error.value;
  const isAtEnd = answer.seq.value >= subject.frames.last.value;
  return (
    <section class="pane answer-pane" aria-label="Answer">
      <div class="pane-head">
        <h2>Answer</h2>
        <span class="muted number" aria-live="off">
          as of event {count(answer.seq.value)}
        </span>
      </div>
      {error && <Fault error={error} again={() => answer.want(subject.seq.peek())} />}
      <Blocks transcript={answer.transcript} isLate={subject.isLate} problem={isAtEnd ? problemOf(facts) : null} />
    </section>
  );
}

interface BlocksProperties {
  transcript: ReadonlySignal<Transcript>;
  isLate?: ReadonlySignal<boolean>;
  /** The error at the end of a failed run, which its messages do not have. */
  problem?: { text: string; code: string } | null;
}

/** Messages whose end, which is the moment, stays in sight unless the user scrolls away from it. */
export function Blocks({ transcript, isLate, problem }: BlocksProperties) {
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const element = box.current!;
    let isNearEnd = true;
    const note = (): void => {
      isNearEnd = element.scrollHeight - element.scrollTop - element.clientHeight < NEAR_PX;
    };
    const grown = new ResizeObserver(() => {
      if (isNearEnd) element.scrollTop = element.scrollHeight;
    });
    grown.observe(element.firstElementChild!);
    element.addEventListener("scroll", note, { passive: true });
    return () => {
      grown.disconnect();
      element.removeEventListener("scroll", note);
    };
  }, []);
  const blocks = transcript.value.blocks.value;
  return (
    <div ref={box} class={`blocks ${isLate?.value ? "late" : ""}`} role="log" aria-live="off" aria-label="Messages" tabIndex={0}>
      <div>
        {blocks.map((block) => (
          <BlockView key={block.key} block={block} />
        ))}
        {problem && !blocks.some((one) => one.kind === "note" && one.tone === "bad") && (
          <p class="note bad">
            {problem.text} {problem.code && <code>{problem.code}</code>}
          </p>
        )}
        {blocks.length === 0 && !problem && <p class="muted">Nothing yet.</p>}
      </div>
    </div>
  );
}

function BlockView({ block }: { block: Block }) {
  switch (block.kind) {
    case "user":
      return <Said text={block.text} images={block.images.length} />;
    case "answer":
      return <Markdown text={block.text} isWhole={block.isWhole} />;
    case "reasoning":
      return (
        <div class="thought">
          <h3>
            <Icon name="brain" size={14} /> reasoning
          </h3>
          <p>{block.text}</p>
        </div>
      );
    case "tool":
      return (
        <div class="called">
          <h3>
            <Icon name="wrench" size={14} /> {block.name}
            <span class="muted">{block.result.value?.status ?? (block.asks.value ? "needs approval" : "running")}</span>
          </h3>
          <pre tabIndex={0}>{block.args}</pre>
          {block.result.value && <pre tabIndex={0}>{block.result.value.text}</pre>}
        </div>
      );
    case "note":
      return (
        <p class={`note ${block.tone}`}>
          {block.text} {block.code && <code>{block.code}</code>}
        </p>
      );
    case "cut":
      return null;
  }
}

/** A message of the user, which is not why somebody looks here. */
function Said({ text, images }: { text: string; images: number }) {
  const isWhole = useSignal(text.length <= SAID_CHARS);
  return (
    <div class="said">
      <h3>user</h3>
      <p>{isWhole.value ? text : `${text.slice(0, SAID_CHARS)}…`}</p>
      {!isWhole.value && (
        <button type="button" class="small" onClick={() => (isWhole.value = true)}>
          Show all
        </button>
      )}
      {images > 0 && <p class="muted">with {images === 1 ? "an image" : `${images} images`}</p>}
    </div>
  );
}
