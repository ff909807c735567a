import type { ComponentChildren } from "preact";
import { server } from "../session";
import { Copy } from "./copy";
import { Empty } from "./empty";

type Scope = "read" | "send" | "admin" | "operator";

/** The tenant of a server without tenants, which the commands need not name. */
const DEFAULT_TENANT = "org-00000000-0000-4000-8000-000000000000";
const WITH: Record<Scope, Scope[]> = {
  read: ["read"],
  send: ["read", "send"],
  admin: ["read", "admin"],
  operator: ["read", "admin", "operator"],
};

/** Return the command that creates a key with a scope, for the tenant of this key. */
export function keyCommand(scope: Scope): string {
  const tenant = server.value?.tenant;
  const scopes = WITH[scope].map((one) => ` --scope ${one}`).join("");
  return `reattach keys create NAME${scopes}${tenant && tenant !== DEFAULT_TENANT ? ` --tenant ${tenant}` : ""}`;
}

/** A view that needs a scope that the key or token of this tab lacks. */
export function Missing({ scope, children }: { scope: Scope; children?: ComponentChildren }) {
  const token = server.value?.token;
  const scopes = (token ?? server.value)?.scopes ?? [];
  const has = scopes.join(" and ") || "no scope";
  const title = `This needs the scope ${scope}`;
  if (token && scope !== "operator" && scope !== "admin") {
    return (
      <Empty title={title}>
        <p>
          This stream token has {has}. Ask the application that issued it for one with <code>{scope}</code>.
        </p>
      </Empty>
    );
  }
  return (
    <Empty title={title} command={keyCommand(scope)}>
      <p>
        {token ? "This stream token" : "This key"} has {has}. {children}
      </p>
    </Empty>
  );
}

/** The scope that a part of a view needs, and the command for a key that has it. */
export function NeedsScope({ detail, scope }: { detail: string; scope: Scope }) {
  const command = keyCommand(scope);
  return (
    <div class="needs-scope">
      <p class="muted">{detail}</p>
      <div class="command">
        <pre tabIndex={0}>{command}</pre>
        <Copy text={command} label="Copy the command" />
      </div>
    </div>
  );
}
