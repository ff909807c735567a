export { connect, type Client } from "./client.js";
export { Conflict, GaveUp, Gone, NotFound, ReattachError, Unauthorized } from "./errors.js";
export type { Many, RunStream, Stream } from "./stream.js";
export type * from "./types.js";
