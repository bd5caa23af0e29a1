// Runs a task through the generated types: submits it, submits it again and waits for its end, reads how it stands, and
// prints the answers. What compiles here is what callers may leave out.
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

const [url] = process.argv.slice(2);
if (url === undefined) throw new Error("usage: main.js <URL of the ingress>");
const client = createClient<paths>({ baseUrl: url });

const body: components["schemas"]["TaskRequest"] = { input: "hello" };
const header = { "Idempotency-Key": "typescript" };

const accepted = await client.POST("/v1/tasks", { body, params: { header } });
if (accepted.response.status !== 202 || accepted.data === undefined) throw new Error(JSON.stringify(accepted.error));
const ended = await client.POST("/v1/tasks", { body, params: { header: { ...header, Prefer: "wait=30" } } });
if (ended.response.status !== 200 || ended.data === undefined) throw new Error(JSON.stringify(ended.error));
const read = await client.GET("/v1/tasks/{id}", { params: { path: { id: accepted.data.id } } });
if (read.data === undefined) throw new Error(JSON.stringify(read.error));
const absent = await client.GET("/v1/tasks/{id}", { params: { path: { id: "nope" } } });

console.log(
  JSON.stringify({ accepted: accepted.data, ended: ended.data, read: read.data, absent: absent.error?.code }),
);
