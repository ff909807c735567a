import type { ApiError } from "../api";
import { Copy } from "./copy";
import { Icon } from "./icon";

/** An error as the API words it, to be copied whole. */
export function Fault({ error, again }: { error: ApiError; again?: (() => void) | undefined }) {
  const whole = JSON.stringify({ status: error.status, ...error.body, code: error.code, detail: error.detail }, null, 2);
  return (
    <div class="fault" role="alert">
      <Icon name="circle-alert" />
      <p>
        {error.detail} <code>{error.code}</code>
      </p>
      <Copy text={whole} label="Copy the error" />
      {again && (
        <button type="button" class="small" onClick={again}>
          Try again
        </button>
      )}
    </div>
  );
}
