import type { ComponentChildren, VNode } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { useOverflow } from "./overflow";

const AROUND = 8;

interface Properties {
  count: number;
  /** The height of every row in CSS pixels. */
  rowHeight: number;
  label: string;
  head: ComponentChildren;
  columns: number;
  render: (index: number) => VNode;
  /** Keep this row in sight when it changes. */
  at?: number | undefined;
  /** Called when the last rows come into sight. */
  onEnd?: () => void;
  class?: string;
}

/** A table of any length that has elements only for the rows that are seen. */
export function VirtualTable({ count, rowHeight, label, head, columns, render, at, onEnd, class: more = "" }: Properties) {
  const box = useRef<HTMLDivElement>(null);
  useOverflow(box);
  const [view, setView] = useState({ top: 0, height: 800 });
  const measure = (): void => {
    // An event of scrolling may come after the list has gone.
    if (!box.current) return;
    const { scrollTop: top, clientHeight: height } = box.current;
    setView((old) => (old.top === top && old.height === height ? old : { top, height }));
  };
  useLayoutEffect(() => {
    const observer = new ResizeObserver(measure);
    observer.observe(box.current!);
    return () => observer.disconnect();
  }, []);
  useLayoutEffect(() => {
    if (at === undefined) return;
    const { scrollTop, clientHeight } = box.current!;
    const headHeight = box.current!.querySelector("thead")!.clientHeight;
    const top = at * rowHeight;
    if (top < scrollTop) box.current!.scrollTop = top;
    else if (top + rowHeight + headHeight > scrollTop + clientHeight) {
      box.current!.scrollTop = top + rowHeight + headHeight - clientHeight;
    }
    measure();
  }, [at, rowHeight]);
  const first = Math.max(Math.floor(view.top / rowHeight) - AROUND, 0);
  const last = Math.min(Math.ceil((view.top + view.height) / rowHeight) + AROUND, count);
  useEffect(() => {
    if (last === count && count > 0) onEnd?.();
  }, [last, count]);
  const rows = [];
  for (let index = first; index < last; index += 1) rows.push(render(index));
  return (
    <div ref={box} class={`virtual-table ${more}`} tabIndex={-1} onScroll={measure}>
      <table aria-label={label} aria-rowcount={count + 1}>
        <thead>{head}</thead>
        <tbody>
          <Space rows={first} rowHeight={rowHeight} columns={columns} />
          {rows}
          <Space rows={count - last} rowHeight={rowHeight} columns={columns} />
        </tbody>
      </table>
    </div>
  );
}

/** The room of the rows that have no elements. */
function Space({ rows, rowHeight, columns }: { rows: number; rowHeight: number; columns: number }) {
  if (rows <= 0) return null;
  return (
    <tr class="space" aria-hidden="true">
      <td colSpan={columns} style={{ height: `${rows * rowHeight}px` }} />
    </tr>
  );
}
