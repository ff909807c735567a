// The public tests of the protocol Durable Streams, against the server in STREAMS_URL.
import { runConformanceTests } from "@durable-streams/server-conformance-tests";

runConformanceTests({ baseUrl: process.env.STREAMS_URL, longPollTimeoutMs: 20_000 });
