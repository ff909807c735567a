import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { count, counted } from "../format";
import { Icon } from "../parts/icon";
import { Chart, type Paint } from "../parts/chart";
import { keep, load } from "../stored";
import { cutLine, cutUntil, dropEvery, isCut, mendLine } from "./line";
import type { Thread } from "./thread";

const MOMENT_MS = 1000;
const SHOWN_MS = 20_000;
const FRAME_MS = 100;
const SPANS = [3, 10, 30];

/** The switches that cut the line, and what that does to the stream. */
export function LinePanel({ thread }: { thread: Thread }) {
  const seconds = useSignal(Number(load("localStorage", "cut seconds")) || 10);
  const left = useSignal(0);
  const cut = isCut.value;
  useEffect(() => {
    if (!cut) return;
    const tick = (): void => void (left.value = Math.max(cutUntil.peek() - Date.now(), 0));
    tick();
    const timer = setInterval(tick, FRAME_MS);
    return () => clearInterval(timer);
  }, [cut, cutUntil.value]);
  const ahead = thread.ahead.value;
  const seq = thread.seq.value;
  const missing = ahead === null ? 0 : Math.max(ahead - seq, 0);
  return (
    <section class={`line ${cut ? "is-cut" : ""}`} aria-label="Line to the server">
      <div class="switches">
        <b class="caption">Line</b>
        <button type="button" class="small" onClick={() => cutLine(MOMENT_MS)}>
          <Icon name="scissors" size={14} /> Cut now
        </button>
        {cut ? (
          <button type="button" class="small mend" onClick={mendLine}>
            <Icon name="plug" size={14} /> Mend <span class="number">{(left.value / 1000).toFixed(1)} s</span>
          </button>
        ) : (
          <button type="button" class="small" onClick={() => cutLine(seconds.value * 1000)}>
            <Icon name="wifi-off" size={14} /> Cut {seconds.value} s
          </button>
        )}
        <select
          class="small"
          aria-label="Length of the cut"
          value={seconds.value}
          onChange={(event) => {
            seconds.value = Number(event.currentTarget.value);
            keep("localStorage", "cut seconds", String(seconds.value));
          }}
        >
          {SPANS.map((one) => (
            <option key={one} value={one}>{one} s</option>
          ))}
        </select>
        <select
          class="small"
          aria-label="Dropped connections"
          value={dropEvery.value}
          onChange={(event) => (dropEvery.value = Number(event.currentTarget.value))}
        >
          <option value={0}>Drop none</option>
          <option value={1}>Drop every connection</option>
          <option value={2}>Drop every 2nd</option>
          <option value={3}>Drop every 3rd</option>
        </select>
      </div>
      <Strip thread={thread} />
      <output class="cursor number">
        {thread.runId.value && <span title="The last event that this page has">seq {count(seq)}</span>}
        {missing > 0 && <span class="missing">{counted(missing, "event")} missing</span>}
      </output>
    </section>
  );
}

/** The last seconds of the stream: events as bars, cuts as breaks. */
function Strip({ thread }: { thread: Thread }) {
  const frame = useSignal(0);
  const moves = thread.isActive.value || thread.lostAt.value > 0;
  useEffect(() => {
    if (!moves) return;
    const timer = setInterval(() => (frame.value += 1), FRAME_MS);
    return () => clearInterval(timer);
  }, [moves]);
  frame.value; // Each frame draws anew.
  return <Chart class="strip" height={30} label="Events of the last 20 seconds" draw={(...given) => draw(thread, moves, ...given)} />;
}

function draw(thread: Thread, moves: boolean, context: CanvasRenderingContext2D, width: number, height: number, paint: Paint): void {
  const { moments } = thread;
  const end = moves ? Date.now() : (moments[moments.length - 1]?.at ?? 0);
  const x = (at: number): number => width - ((end - at) / SHOWN_MS) * width;
  const middle = height - 5.5;
  context.lineWidth = 2;
  context.strokeStyle = paint("--line");
  context.beginPath();
  context.moveTo(0, middle);
  context.lineTo(width, middle);
  context.stroke();
  let begun = 0;
  for (let at = 0; at < moments.length; at += 1) {
    const one = moments[at]!;
    const next = moments[at + 1];
    const right = x(next?.at ?? end);
    const events = next ? next.seq - one.seq : 0;
    if (events > 0 && right > 0) {
      const tall = Math.min(4 + Math.log2(1 + events) * 4, height - 8);
      context.fillStyle = paint(one.isLive ? "--accent" : "--warn");
      context.fillRect(right - 1, middle - 2 - tall, 2, tall);
    }
    if (next?.isLive === one.isLive) continue;
    // A stretch ends here, with or without a line.
    context.strokeStyle = paint(one.isLive ? "--good" : "--bad");
    context.setLineDash(one.isLive ? [] : [3, 4]);
    context.beginPath();
    context.moveTo(x(moments[begun]!.at), middle);
    context.lineTo(right, middle);
    context.stroke();
    begun = at + 1;
  }
  context.setLineDash([]);
}
