import type { ComponentChildren } from "preact";
import { Copy } from "./copy";

/** A place with nothing in it yet, and the command that fills it. */
export function Empty({ title, command, children }: { title: string; command?: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <h2>{title}</h2>
      {children}
      {command && (
        <div class="command">
          <pre tabIndex={0}>{command}</pre>
          <Copy text={command} label="Copy the command" />
        </div>
      )}
    </div>
  );
}
