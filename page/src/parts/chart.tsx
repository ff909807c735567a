import { useLayoutEffect, useRef } from "preact/hooks";
import { theme } from "../theme";

/** A colour of the theme, such as `--accent`, as the canvas takes it. */
export type Paint = (name: string) => string;

interface Properties {
  height: number;
  /** What the chart shows, for those who cannot see it. */
  label: string;
  draw: (context: CanvasRenderingContext2D, width: number, height: number, paint: Paint) => void;
  onPick?: (fraction: number) => void;
  class?: string;
}

/** A canvas that is drawn again when its size, the theme or `draw` changes. */
export function Chart({ height, label, draw, onPick, class: more = "" }: Properties) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const current = theme.value;
  useLayoutEffect(() => {
    const element = canvas.current!;
    const paintAll = (): void => {
      const width = element.clientWidth;
      if (width === 0) return;
      const scale = devicePixelRatio || 1;
      element.width = Math.round(width * scale);
      element.height = Math.round(height * scale);
      const context = element.getContext("2d")!;
      context.scale(scale, scale);
      context.clearRect(0, 0, width, height);
      draw(context, width, height, painting(element));
    };
    const observer = new ResizeObserver(paintAll);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    observer.observe(element);
    dark.addEventListener("change", paintAll);
    paintAll();
    return () => {
      observer.disconnect();
      dark.removeEventListener("change", paintAll);
    };
  }, [draw, height, current]);
  const pick = onPick && ((event: MouseEvent) => onPick(event.offsetX / canvas.current!.clientWidth));
  return <canvas ref={canvas} class={`chart ${more}`} style={{ height: `${height}px` }} role="img" aria-label={label} onClick={pick} />;
}

/** Canvases know no `light-dark()`, so an element resolves the colour. */
function painting(element: HTMLElement): Paint {
  const known: Record<string, string> = {};
  return (name) => {
    if (!known[name]) {
      const before = element.style.color;
      element.style.color = `var(${name})`;
      known[name] = getComputedStyle(element).color;
      element.style.color = before;
    }
    return known[name];
  };
}

/** Draw bars from left to right, the largest as high as the chart. */
export function bars(
  context: CanvasRenderingContext2D,
  values: ArrayLike<number>,
  width: number,
  height: number,
  colour: string,
): void {
  let most = 0;
  for (let at = 0; at < values.length; at += 1) most = Math.max(most, values[at]!);
  if (most === 0) return;
  context.fillStyle = colour;
  const step = width / values.length;
  for (let at = 0; at < values.length; at += 1) {
    const tall = (values[at]! / most) * height;
    if (tall > 0) context.fillRect(at * step, height - Math.max(tall, 1), Math.max(step - 0.5, 0.5), Math.max(tall, 1));
  }
}

/** A line of values without axes. */
export function Sparkline({ values, label, height = 24 }: { values: number[]; label: string; height?: number }) {
  return (
    <Chart
      class="sparkline"
      height={height}
      label={label}
      draw={(context, width, tall, paint) => {
        const most = Math.max(...values, 1);
        context.strokeStyle = paint("--accent");
        context.lineWidth = 1.5;
        context.beginPath();
        values.forEach((value, at) => {
          context.lineTo((at / Math.max(values.length - 1, 1)) * width, tall - 1 - (value / most) * (tall - 2));
        });
        context.stroke();
      }}
    />
  );
}
