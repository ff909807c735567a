// The reference server of Durable Streams, as its README starts it: in memory, its fastest.
import { DurableStreamTestServer } from "@durable-streams/server";

console.log = console.info = () => {}; // Nobody reads what it says.

const server = new DurableStreamTestServer({
  port: 0,
  host: "127.0.0.1",
  compression: false,
});
const url = await server.start();
process.stdout.write(`${url ?? server.baseUrl}\n`);
