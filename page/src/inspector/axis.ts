/** Time from left to right, on which long silences are breaks of one width. */

import type { Timeline } from "./facts";

/** Silences that are longer are breaks. */
export const BREAK_SECONDS = 5;
const BREAK_PX = 44;
/** The part of the width that all breaks together take at most. */
const MOST_BREAKS = 0.5;

interface Stretch {
  from: number;
  to: number;
  x: number;
  width: number;
  isBreak: boolean;
}

export interface Axis {
  /** Return the place of a time in milliseconds since 1970. */
  x(time: number): number;
  /** Return the time at a place. */
  time(x: number): number;
  breaks: Stretch[];
}

/** Make an axis of a width for these times, which are in order. */
export function axisOf(times: number[], width: number): Axis {
  const stretches: Stretch[] = [];
  let breaks = 0;
  let activeMs = 0;
  for (let at = 1; at < times.length; at += 1) {
    const [from, to] = [times[at - 1]!, times[at]!];
    if (to <= from) continue;
    const isBreak = to - from > BREAK_SECONDS * 1000;
    const last = stretches[stretches.length - 1];
    if (isBreak) breaks += 1;
    else activeMs += to - from;
    if (last && !last.isBreak && !isBreak) last.to = to;
    else stretches.push({ from, to, x: 0, width: 0, isBreak });
  }
  // Without anything but silence, the silences share the width.
  const breakPx = activeMs === 0 ? width / Math.max(breaks, 1) : Math.min(BREAK_PX, (width * MOST_BREAKS) / Math.max(breaks, 1));
  const perMs = activeMs === 0 ? 0 : (width - breaks * breakPx) / activeMs;
  let x = 0;
  for (const stretch of stretches) {
    stretch.x = x;
    stretch.width = stretch.isBreak ? breakPx : (stretch.to - stretch.from) * perMs;
    x += stretch.width;
  }
  return {
    x(time) {
      const found = find(stretches, (one) => one.to >= time);
      if (!found) return stretches.length ? width : 0;
      if (time <= found.from) return found.x;
      return found.x + ((time - found.from) / (found.to - found.from)) * found.width;
    },
    time(place) {
      const found = find(stretches, (one) => one.x + one.width >= place) ?? stretches[stretches.length - 1];
      if (!found) return times[0] ?? 0;
      return found.from + Math.min(Math.max((place - found.x) / (found.width || 1), 0), 1) * (found.to - found.from);
    },
    breaks: stretches.filter(({ isBreak }) => isBreak),
  };
}

/** Positions of a run in its log and in time. The times between two known ones are spread evenly. */
export class Moments {
  readonly seqs: number[];
  readonly times: number[];

  constructor(timeline: Timeline) {
    const known = timeline.commits.map(({ seq, at }): [number, number] => [seq, Date.parse(at)]);
    this.seqs = known.map(([seq]) => seq);
    this.times = known.map(([, time]) => time);
  }

  timeOf(seq: number): number {
    return between(seq, this.seqs, this.times);
  }

  seqAt(time: number): number {
    return Math.round(between(time, this.times, this.seqs));
  }
}

/** Return the value of `ys` at `x` between the known places `xs`, which are in order. */
function between(x: number, xs: number[], ys: number[]): number {
  if (!xs.length) return 0;
  let low = 0;
  let high = xs.length - 1;
  if (x <= xs[low]!) return ys[low]!;
  if (x >= xs[high]!) return ys[high]!;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle]! <= x) low = middle;
    else high = middle;
  }
  const span = xs[high]! - xs[low]!;
  return ys[low]! + (span ? ((x - xs[low]!) / span) * (ys[high]! - ys[low]!) : 0);
}

/** Return the first of ordered stretches for which a condition holds, which holds for all after it too. */
function find(stretches: Stretch[], holds: (one: Stretch) => boolean): Stretch | undefined {
  let low = 0;
  let high = stretches.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holds(stretches[middle]!)) high = middle;
    else low = middle + 1;
  }
  return stretches[low];
}
