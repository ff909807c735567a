import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { Icon } from "./icon";

/** A modal dialog. `onClose` is called when the user leaves it by Escape or its button. */
export function Dialog({ title, onClose, children }: { title: string; onClose: () => void; children: ComponentChildren }) {
  const element = useRef<HTMLDialogElement>(null);
  useEffect(() => element.current!.showModal(), []);
  return (
    <dialog ref={element} class="dialog" aria-label={title} onClose={onClose}>
      <header>
        <h2>{title}</h2>
        <button type="button" class="quiet small" aria-label="Close" onClick={() => element.current!.close()}>
          <Icon name="x" />
        </button>
      </header>
      {children}
    </dialog>
  );
}
