/** The key or token of this tab, and what the server says about it. */

import { signal } from "@preact/signals";
import { route, replace } from "./router";
import { forgetTab, keep, load } from "./stored";

/** The address of the server, which ends in a slash: the page may be below any path. */
export const base = new URL("..", import.meta.url).href;

export interface ServerInfo {
  version: string;
  status: "ok" | "draining";
  tenant: string;
  scopes: string[];
  is_operator: boolean;
  open: boolean;
  page: boolean;
  token: { run_id: string | null; conversation_id: string | null; scopes: string[]; expires_at: string } | null;
  ping_interval_seconds: number;
}

/** Whether the server accepts requests of this browser without a key, as of the page's load. */
const isOpen = document.documentElement.dataset.keys === "none";
const TOKEN_PREFIX = "rt1.";
const KEY = `token ${base}`;

export const token = signal<string | null>(fromAddress() ?? load("sessionStorage", KEY));
export const server = signal<ServerInfo | null>(null);
/** Why the tab has to sign in; null: it need not. */
export const signIn = signal<string | null>(isOpen || token.value ? null : "");

/** Take a token from the fragment, which no server sees, and remove it from the address. */
function fromAddress(): string | null {
  const { path, params } = route.value;
  const { token: given, ...others } = params;
  if (!given) return null;
  replace(path, others);
  keep("sessionStorage", KEY, given);
  return given;
}

export function signInWith(secret: string): void {
  keep("sessionStorage", KEY, secret);
  token.value = secret;
  signIn.value = null;
}

/** Whether a secret is a stream token, which the application's own users have. */
export const isToken = (secret: string | null): boolean => secret?.startsWith(TOKEN_PREFIX) ?? false;

/** Return when a stream token expires, in milliseconds since 1970; null: the secret is none. */
export function expiryOf(secret: string): number | null {
  try {
    const claims = JSON.parse(atob(secret.split(".")[2]!.replaceAll("-", "+").replaceAll("_", "/")));
    return typeof claims.e === "number" ? claims.e * 1000 : null;
  } catch {
    return null;
  }
}

/** Forget the key and the drafts of this tab. */
export function signOut(why = ""): void {
  forgetTab();
  token.value = null;
  server.value = null;
  signIn.value = why;
}

/** Note that the server refused the key or token. The views keep what they show. */
export function refused(detail: string): void {
  if (signIn.value === null) signIn.value = detail;
}

/** Whether the tab may do what needs a scope. */
export function may(scope: "read" | "send" | "admin" | "operator" | "cancel"): boolean {
  const info = server.value;
  if (!info) return false;
  if (info.token) return info.token.scopes.includes(scope);
  if (scope === "operator") return info.is_operator;
  return info.scopes.includes(scope === "cancel" ? "send" : scope);
}
