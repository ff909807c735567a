import { useLayoutEffect } from "preact/hooks";

/** Mark the parent of an element with `data-more` while more of its content is at the right. */
export function useOverflow(box: { current: HTMLElement | null }): void {
  useLayoutEffect(() => {
    const element = box.current!;
    const look = (): void => {
      const isMore = element.scrollLeft + element.clientWidth < element.scrollWidth - 1;
      element.parentElement!.toggleAttribute("data-more", isMore);
    };
    const observer = new ResizeObserver(look);
    observer.observe(element);
    if (element.firstElementChild) observer.observe(element.firstElementChild);
    element.addEventListener("scroll", look, { passive: true });
    return () => {
      observer.disconnect();
      element.removeEventListener("scroll", look);
    };
  }, []);
}
