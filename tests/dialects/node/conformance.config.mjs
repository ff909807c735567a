// Each test makes streams of its own, so all may run at once.
import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["conformance.test.mjs"],
    sequence: { concurrent: true },
    maxConcurrency: 6,
    retry: 2, // Some tests give an answer two seconds, which a busy machine may exceed.
    pool: "threads",
    isolate: false,
    testTimeout: 30_000,
  },
});
