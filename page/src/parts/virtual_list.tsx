import type { ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

const AROUND = 6;

interface Properties {
  count: number;
  /** The height of every row in CSS pixels. */
  rowHeight: number;
  label: string;
  render: (index: number) => ComponentChildren;
  /** Scroll to this row when it changes. */
  at?: number | undefined;
  /** Keep the last row in sight while rows are added. */
  sticksToEnd?: boolean;
  /** Called when the user scrolls: the first and last row that are seen. */
  onRange?: (first: number, last: number) => void;
  class?: string;
}

/** A list of any length that has elements only for the rows that are seen. */
export function VirtualList({ count, rowHeight, label, render, at, sticksToEnd = false, onRange, class: more = "" }: Properties) {
  const box = useRef<HTMLDivElement>(null);
  const [view, setView] = useState({ top: 0, height: 600 });
  const measure = (): void => {
    // An event of scrolling may come after the list has gone.
    if (!box.current) return;
    const { scrollTop: top, clientHeight: height } = box.current;
    setView((old) => (old.top === top && old.height === height ? old : { top, height }));
  };
  const reveal = useRef(() => {});
  reveal.current = () => {
    const { scrollTop, clientHeight } = box.current!;
    if (sticksToEnd) box.current!.scrollTop = count * rowHeight;
    const top = (at ?? 0) * rowHeight;
    if (at === undefined || sticksToEnd || (top >= scrollTop && top + rowHeight <= scrollTop + clientHeight)) return;
    box.current!.scrollTop = top - clientHeight / 2;
  };
  useLayoutEffect(() => {
    const observer = new ResizeObserver(() => {
      // A list that became smaller may have lost the row.
      reveal.current();
      measure();
    });
    observer.observe(box.current!);
    return () => observer.disconnect();
  }, []);
  useLayoutEffect(() => {
    reveal.current();
    measure();
  }, [at, rowHeight]);
  useLayoutEffect(() => {
    if (!sticksToEnd) return;
    box.current!.scrollTop = count * rowHeight;
    measure();
  }, [sticksToEnd, count, rowHeight]);
  const first = Math.max(Math.floor(view.top / rowHeight) - AROUND, 0);
  const last = Math.min(Math.ceil((view.top + view.height) / rowHeight) + AROUND, count);
  useEffect(() => onRange?.(first, last), [first, last]);
  const rows = [];
  for (let index = first; index < last; index += 1) rows.push(render(index));
  return (
    <div ref={box} class={`virtual ${more}`} role="list" aria-label={label} tabIndex={0} onScroll={measure}>
      <div class="virtual-all" style={{ height: `${count * rowHeight}px` }}>
        <div class="virtual-seen" style={{ transform: `translateY(${first * rowHeight}px)` }}>
          {rows}
        </div>
      </div>
    </div>
  );
}
