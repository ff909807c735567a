/** Requests to the API, except for streams. */

import { signal } from "@preact/signals";
import { base, refused, token } from "./session";

/** The server refused. `detail` and `code` are its own words. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    readonly detail: string,
    readonly body: Record<string, unknown> = {},
  ) {
    super(detail);
  }
}

export interface Ask {
  method?: "GET" | "POST" | "PATCH" | "PUT" | "DELETE";
  /** Members without a value are left out; a list is repeated. */
  query?: Record<string, string | number | boolean | string[] | null | undefined>;
  body?: unknown;
  signal?: AbortSignal | undefined;
}

/** How long the last request took, in milliseconds; null while the server does not answer. */
export const latencyMs = signal<number | null>(null);

/** Return the JSON of an answer. Raises ApiError, also if the server is away (`status` 0). */
export async function api<T>(path: string, { method = "GET", query = {}, body, signal }: Ask = {}): Promise<T> {
  const url = new URL(path.replace(/^\//, ""), base);
  for (const [name, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") url.searchParams.append(name, String(one));
    }
  }
  const headers: Record<string, string> = { accept: "application/json" };
  const secret = token.peek();
  if (secret) headers.authorization = `Bearer ${secret}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const began = performance.now();
  let response: Response;
  try {
    response = await fetch(url, {
      method,
      headers,
      cache: "no-store",
      credentials: "same-origin",
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      ...(signal ? { signal } : {}),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    latencyMs.value = null;
    throw new ApiError(0, "unreachable", "The server does not answer. The page tries again by itself.");
  }
  latencyMs.value = performance.now() - began;
  const text = await response.text();
  let parsed: any = null;
  let isJson = true;
  try {
    // A deletion is answered with `null`, and some requests with nothing.
    if (text) parsed = JSON.parse(text);
  } catch {
    isJson = false;
  }
  if (response.ok && isJson) return parsed as T;
  const detail = typeof parsed?.detail === "string" ? parsed.detail : `${response.status}: another program answered.`;
  const error = new ApiError(response.status, parsed?.code ?? `http_${response.status}`, detail, parsed ?? {});
  // An answer to the key before says nothing about this one.
  if (error.status === 401 && token.peek() === secret) refused(detail);
  throw error;
}

/** Return an error of a request or a stream in the API's words. */
export function asApiError(error: unknown): ApiError {
  if (error instanceof ApiError) return error;
  const { status = 0, code = "error", detail, message } = Object(error) as Record<string, any>;
  return new ApiError(status, code, detail ?? message ?? String(error), Object(error));
}
