/** Numbers, times and ids as people read them. */

const grouped = new Intl.NumberFormat("en-US");

export const count = (value: number): string => grouped.format(value);

/** Return a count with its noun: `1 event`, `37 events`. */
export const counted = (value: number, noun: string): string => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

/** Return a span: `340 ms`, `1.2 s`, `4 m`, `3 h`, `2 d`. */
export function span(ms: number): string {
  if (!(ms >= 0)) return "–";
  if (ms < 950) return `${Math.round(ms)} ms`;
  const seconds = ms / 1000;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 99.5) return `${Math.round(seconds)} s`;
  if (seconds < 5940) return `${Math.round(seconds / 60)} m`;
  if (seconds < 172_800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} d`;
}

/** Return how long ago a time was. */
export const age = (at: string | number, now = Date.now()): string => span(Math.max(now - +new Date(at), 0));

export function bytes(value: number): string {
  if (value < 1024) return `${value} B`;
  if (value < 1024 ** 2) return `${(value / 1024).toFixed(1)} KiB`;
  if (value < 1024 ** 3) return `${(value / 1024 ** 2).toFixed(1)} MiB`;
  return `${(value / 1024 ** 3).toFixed(1)} GiB`;
}

/** Return the time of day, and the day if it is not today. */
export function clock(at: string | number): string {
  const time = new Date(at);
  const day = time.toDateString() === new Date().toDateString() ? "" : `${time.toLocaleDateString()} `;
  return day + time.toLocaleTimeString();
}

/** Return an id that fits a narrow place: its kind and the last characters, because the first ones are the time. */
export function shortId(id: string): string {
  const [kind, rest = ""] = id.split(/-(.*)/);
  return rest.length > 10 ? `${kind}-…${rest.slice(-8)}` : id;
}
