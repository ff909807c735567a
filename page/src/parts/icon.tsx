import shapes from "virtual:icons";
import { h } from "preact";

/** An icon for the eyes alone; the control around it has the name. */
export function Icon({ name, size = 16 }: { name: string; size?: number }) {
  return (
    <svg class="icon" width={size} height={size} viewBox="0 0 24 24" aria-hidden="true">
      {shapes[name]?.map(([tag, attributes]) => h(tag, attributes))}
    </svg>
  );
}
