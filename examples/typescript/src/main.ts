// A runner of tools for taskmesh, written with PROTOCOL.md, "Serving a tool", and nothing of the mesh's own code.

import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { Broker } from "./broker.js";
import { bindConsumer, declare, Runner } from "./runner.js";
import { tools } from "./tools.js";
import { Schemas } from "./wire.js";

const CALLS_AT_ONCE = 4; // of each tool
const IDLE_PULL_MILLISECONDS = 2000; // a stop waits as long
const DECLARE_EACH_MILLISECONDS = 60_000; // a declaration is forgotten after ten minutes
const { env } = process;

let stopping = false;
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => (stopping = true));

/** Take one call after the other: never more than is run at once, since a lease runs from the delivery on. */
async function serve(broker: Broker, runner: Runner): Promise<void> {
  while (!stopping) {
    try {
      const message = await broker.pull("TOOLS", `tool-${runner.tool.name}`, IDLE_PULL_MILLISECONDS);
      if (message !== undefined) await runner.handle(message);
    } catch (error) {
      console.error(`${runner.tool.name}: ${String(error)}`); // what is not answered comes back after its lease
      await sleep(100);
    }
  }
}

const schemas = new Schemas(env.EXAMPLE_SCHEMAS ?? fileURLToPath(new URL("../../../libs/contracts/spec/schemas", import.meta.url)));
const broker = await Broker.connect(env.MESH_NATS_URL ?? "nats://127.0.0.1:4222", env.MESH_NATS_DOMAIN);
const worker = `typescript-tools-${process.pid}@${hostname()}`;
const declarations: NodeJS.Timeout[] = [];
const running: Promise<void>[] = [];
for (const tool of tools) {
  const bind = () => bindConsumer(broker, tool, Number(env.MESH_ACK_WAIT_SECONDS ?? 5));
  const ackWaitMilliseconds = await bind();
  // Only now, so that a tool that models are offered has somebody who runs it.
  await declare(broker, schemas, tool);
  const again = () => bind().then(() => declare(broker, schemas, tool)).catch((error) => console.error(`${tool.name}: not declared: ${String(error)}`));
  declarations.push(setInterval(() => void again(), DECLARE_EACH_MILLISECONDS));
  const runner = new Runner(broker, schemas, tool, worker, env.EXAMPLE_FOLDER ?? ".", ackWaitMilliseconds);
  for (let slot = 0; slot < CALLS_AT_ONCE; slot++) running.push(serve(broker, runner));
}
console.log("ready");
await Promise.all(running); // each call in hand ends by itself, or at its tool's timeout
for (const declaration of declarations) clearInterval(declaration);
await broker.connection.close();
