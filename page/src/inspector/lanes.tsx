import { useSignal, type ReadonlySignal } from "@preact/signals";
import { useCallback, useMemo } from "preact/hooks";
import { count, counted, span } from "../format";
import { Chart, type Paint } from "../parts/chart";
import { axisOf, type Axis, Moments } from "./axis";
import type { RunFacts, Timeline } from "./facts";

const GUTTER = 64;
const RIGHT = 10;
const GAPS = { top: 4, height: 42 };
const LANE = { height: 9, every: 17 };
const LEAST_LABEL_PX = 26;
const SCALE_PX = 16;
/** The least distance of two times of the scale. */
const TICK_PX = 150;

interface Properties {
  facts: RunFacts;
  timeline: Timeline;
  seq: ReadonlySignal<number>;
  onPick: (seq: number) => void;
}

interface Bar {
  from: number;
  to: number;
  text: string;
  colour: string;
}

interface Lane {
  name: string;
  bars: Bar[];
}

/** The run over time: gaps between events, and below them model calls, tools and attempts. */
export function Lanes({ facts, timeline, seq, onPick }: Properties) {
  const width = useSignal(0);
  const moments = useMemo(() => new Moments(timeline), [timeline]);
  const lanes = useMemo(() => lanesOf(facts, moments), [facts, moments]);
  const times = useMemo(() => timesOf(facts, timeline, moments), [facts, timeline, moments]);
  const axis = useMemo(() => axisOf(times, Math.max(width.value - GUTTER - RIGHT, 1)), [times, width.value]);
  const height = GAPS.top + GAPS.height + 8 + lanes.length * LANE.every + SCALE_PX;
  const draw = useCallback(
    (context: CanvasRenderingContext2D, wide: number, _: number, paint: Paint) => {
      width.value = wide;
      context.font = "11px system-ui, sans-serif";
      context.textBaseline = "middle";
      drawLabels(context, ["gaps", ...lanes.map(({ name }) => name)], paint);
      context.save();
      context.translate(GUTTER, 0);
      const most = drawGaps(context, moments, axis, paint);
      drawScale(context, times, axis, height, most, paint);
      drawBreaks(context, axis, height, paint);
      drawLanes(context, lanes, axis, paint);
      drawCuts(context, facts, axis, paint);
      context.restore();
    },
    [moments, lanes, axis, facts, height],
  );
  return (
    <div class="lanes">
      <Chart
        height={height}
        label={describe(timeline, axis)}
        draw={draw}
        onPick={(fraction) => onPick(moments.seqAt(axis.time(fraction * width.value - GUTTER)))}
      />
      <Needle seq={seq} moments={moments} axis={axis} />
      {timeline.missing.length > 0 && (
        <p class="muted missing">
          No times of {timeline.missing.map(({ first_seq, last_seq }) => `${count(first_seq)}–${count(last_seq)}`).join(", ")}: the process that
          wrote these events was killed.
        </p>
      )}
    </div>
  );
}

function Needle({ seq, moments, axis }: { seq: ReadonlySignal<number>; moments: Moments; axis: Axis }) {
  if (!moments.seqs.length || seq.value === 0) return null;
  return <i class="needle" style={{ transform: `translateX(${GUTTER + axis.x(moments.timeOf(seq.value))}px)` }} />;
}

function describe(timeline: Timeline, axis: Axis): string {
  const long = axis.breaks.length;
  const [worst] = timeline.gaps;
  const silences = long ? `, ${counted(long, "silence")} of more than 5 s` : "";
  const most = worst ? `; the longest gap, of ${span(worst.seconds * 1000)}, follows event ${worst.after_seq}` : "";
  return `Gaps between ${counted(timeline.last_seq, "event")} over time${silences}${most}`;
}

/** All times of the axis: of the events, and of the begin and the end. */
function timesOf(facts: RunFacts, timeline: Timeline, moments: Moments): number[] {
  const times = [Date.parse(timeline.began_at), ...moments.times];
  const end = facts.completed_at ? Date.parse(facts.completed_at) : Date.now();
  const parts = [...facts.steps, ...facts.tool_calls].flatMap(({ began_at, ended_at }) => [began_at, ended_at]);
  const known = parts.filter((at) => at !== null).map((at) => Date.parse(at));
  return [...times, ...known, end].sort((a, b) => a - b);
}

function lanesOf(facts: RunFacts, moments: Moments): Lane[] {
  const now = facts.completed_at ? Date.parse(facts.completed_at) : Date.now();
  const until = (at: string | null): number => (at ? Date.parse(at) : now);
  const at = (time: string | null, seq: number | null): number => (time ? Date.parse(time) : moments.timeOf(seq ?? 0));
  const found: Lane[] = [];
  if (facts.steps.length) {
    const bars = facts.steps.map(({ began_at, ended_at, model }) => ({
      // The times of a killed process are lost; its step began with the run at the earliest.
      from: Date.parse(began_at ?? facts.attempt_list[0]?.began_at ?? facts.created_at),
      to: until(ended_at),
      text: model ?? "",
      colour: "--accent",
    }));
    found.push({ name: "steps", bars });
  }
  if (facts.tool_calls.length) {
    const bars = facts.tool_calls.map((call) => ({
      from: at(call.began_at, call.began_seq),
      to: call.ended_at || call.ended_seq ? at(call.ended_at, call.ended_seq) : now,
      text: call.name,
      colour: call.status === "error" ? "--bad" : "--good",
    }));
    found.push({ name: "tools", bars });
  }
  if (facts.attempt_list.length) {
    const list = facts.attempt_list;
    const bars = list.map((one, place) => ({
      from: Date.parse(one.began_at),
      to: until(one.ended_at ?? list[place + 1]?.began_at ?? null),
      text: String(one.number),
      colour: place % 2 ? "--warn" : "--muted",
    }));
    found.push({ name: "attempts", bars });
  }
  return found;
}

function drawLabels(context: CanvasRenderingContext2D, names: string[], paint: Paint): void {
  context.fillStyle = paint("--muted");
  context.textAlign = "left";
  for (const [place, name] of names.entries()) context.fillText(name, 0, place === 0 ? GAPS.top + GAPS.height - 6 : laneTop(place - 1) + 5);
}

/** Draw for each pair of known events how long the one after it took, on a scale of square roots. */
function drawGaps(context: CanvasRenderingContext2D, { seqs, times }: Moments, axis: Axis, paint: Paint): number {
  const tall = new Map<number, number>();
  let most = 0;
  for (let at = 1; at < times.length; at += 1) {
    const ms = (times[at]! - times[at - 1]!) / Math.max(seqs[at]! - seqs[at - 1]!, 1);
    const whole = times[at]! - times[at - 1]!;
    if (axis.breaks.some(({ from, to }) => from >= times[at - 1]! && to <= times[at]!)) continue;
    const column = Math.round(axis.x(times[at]!));
    const value = Math.sqrt(Math.max(ms, whole > 0 ? 1 : 0));
    tall.set(column, Math.max(tall.get(column) ?? 0, value));
    most = Math.max(most, value);
  }
  const bottom = GAPS.top + GAPS.height;
  context.fillStyle = paint("--line");
  context.fillRect(0, bottom, axis.x(Infinity), 1);
  context.fillStyle = paint("--accent");
  for (const [column, value] of tall) {
    const height = Math.max((value / Math.max(most, 1)) * GAPS.height, 2);
    context.fillRect(column - 1, bottom - height, 1.5, height);
  }
  return most ** 2;
}

/** Write how long the highest gap is, and how long after the beginning some places are. */
function drawScale(context: CanvasRenderingContext2D, times: number[], axis: Axis, height: number, mostMs: number, paint: Paint): void {
  const width = axis.x(Infinity);
  const [began = 0] = times;
  context.fillStyle = paint("--muted");
  context.textAlign = "left";
  if (mostMs > 0) context.fillText(`≤ ${span(mostMs)}`, -GUTTER, GAPS.top + 6);
  const ticks = Math.max(Math.min(Math.floor(width / TICK_PX), 6), 1);
  for (let tick = 0; tick <= ticks; tick += 1) {
    const x = (tick / ticks) * width;
    if (axis.breaks.some((one) => x > one.x && x < one.x + one.width)) continue;
    context.textAlign = tick === 0 ? "left" : tick === ticks ? "right" : "center";
    context.fillText(tick === 0 ? "0" : span(axis.time(x) - began), x, height - SCALE_PX / 2);
  }
}

function drawBreaks(context: CanvasRenderingContext2D, axis: Axis, height: number, paint: Paint): void {
  context.textAlign = "center";
  for (const { x, width, from, to } of axis.breaks) {
    context.fillStyle = paint("--raised");
    context.fillRect(x, 0, width, height);
    context.strokeStyle = paint("--muted");
    context.setLineDash([2, 3]);
    for (const edge of [x + 0.5, x + width - 0.5]) {
      context.beginPath();
      context.moveTo(edge, 0);
      context.lineTo(edge, height);
      context.stroke();
    }
    context.setLineDash([]);
    if (width < LEAST_LABEL_PX) continue;
    context.fillStyle = paint("--text");
    context.fillText(span(to - from), x + width / 2, GAPS.top + GAPS.height / 2);
  }
}

function drawLanes(context: CanvasRenderingContext2D, lanes: Lane[], axis: Axis, paint: Paint): void {
  for (const [place, { bars }] of lanes.entries()) {
    for (const { from, to, text, colour } of bars) {
      const left = axis.x(from);
      const wide = Math.max(axis.x(to) - left - 1, 2);
      context.fillStyle = paint(colour);
      context.beginPath();
      context.roundRect(left, laneTop(place), wide, LANE.height, 2);
      context.fill();
      if (context.measureText(text).width + 8 > wide) continue;
      context.fillStyle = paint("--bg");
      context.textAlign = "left";
      context.font = "9px system-ui, sans-serif";
      context.fillText(text, left + 4, laneTop(place) + LANE.height / 2 + 0.5);
      context.font = "11px system-ui, sans-serif";
    }
  }
}

/** Mark where readers were cut off. */
function drawCuts(context: CanvasRenderingContext2D, facts: RunFacts, axis: Axis, paint: Paint): void {
  context.fillStyle = paint("--bad");
  for (const { at } of facts.cut_offs) {
    const x = axis.x(Date.parse(at));
    context.beginPath();
    context.moveTo(x - 4, GAPS.top - 4);
    context.lineTo(x + 4, GAPS.top - 4);
    context.lineTo(x, GAPS.top + 4);
    context.fill();
  }
}

const laneTop = (place: number): number => GAPS.top + GAPS.height + 8 + place * LANE.every;
