// What is on the wire: schemas, ids and subjects, as PROTOCOL.md has them.

import { randomBytes } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { type ErrorObject } from "ajv";
import { Ajv2020, type ValidateFunction } from "ajv/dist/2020.js";
import addFormats from "ajv-formats";

export type Json = Record<string, unknown>;

/** A call as it lies in TOOLS. Its arguments are not looked at: those of the journal count. */
export interface Work {
  task: string;
  tenant: string;
  turn: number;
  call: string;
  gen: number;
  tries: number; // how many had failed when a timer brought the message
  releases: number; // how often the step was released when the message was published
  tool: string;
}

export interface ErrorInfo {
  code: string;
  message: string;
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The JSON Schema of each event and record by its wire type, such as "tool.completed". */
export class Schemas {
  readonly #ajv = new Ajv2020({ strict: false });
  readonly #checks = new Map<string, ValidateFunction>();

  constructor(folder: string) {
    addFormats.default(this.#ajv);
    for (const file of readdirSync(folder).filter((name) => name.endsWith(".json"))) {
      this.#checks.set(file.slice(0, -".json".length), this.compile(JSON.parse(readFileSync(join(folder, file), "utf-8")) as Json));
    }
  }

  compile(schema: Json): ValidateFunction {
    return this.#ajv.compile(schema);
  }

  knows(name: unknown): name is string {
    return typeof name === "string" && this.#checks.has(name);
  }

  /** Throws if a value is not what its wire type says. */
  check(name: string, value: unknown): Json {
    const check = this.#checks.get(name);
    if (check === undefined || !check(value)) throw new Error(`${name}: ${complaint(check?.errors)}`);
    return value as Json;
  }

  encode(name: string, value: Json): string {
    // What is held against the schema is what is written: a field that is undefined is not.
    const payload = JSON.stringify(value);
    this.check(name, JSON.parse(payload));
    return payload;
  }

  /** Takes no payload on trust: anybody who may publish can have written it. */
  decodeWork(payload: Uint8Array, subject: string): Work {
    const work = this.check("work.tool", JSON.parse(utf8.decode(payload))) as unknown as Work;
    if (subject !== `tools.${work.tool}`) throw new Error(`a call of ${work.tool}, on ${subject}`);
    return { ...work, gen: work.gen ?? 0, tries: work.tries ?? 0, releases: work.releases ?? 0 };
  }

  decodeEvent(payload: Uint8Array): Json {
    const event = JSON.parse(utf8.decode(payload)) as Json;
    // An event of a type that is news keeps its place in the journal, and no more.
    return this.knows(event.type) ? this.check(event.type, event) : event;
  }
}

/** Whether a message that is not understood may be a later version's: what all of them have is there. */
export function ofAnotherVersion(payload: Uint8Array, subject: string): boolean {
  try {
    const { kind, task, tenant, tool } = JSON.parse(utf8.decode(payload)) as Json;
    const named = [task, tenant].every((each) => typeof each === "string" && each !== "");
    return kind === "tool" && named && (tool === undefined || subject === `tools.${String(tool)}`);
  } catch {
    return false;
  }
}

export function complaint(errors: ErrorObject[] | null | undefined): string {
  return errors?.map((error) => `${error.instancePath || "/"} ${error.message}`).join("; ") ?? "unknown";
}

/** A ULID: 48 bits of milliseconds, 80 random bits, 26 characters of base 32. */
export function newId(): string {
  let value = (BigInt(Date.now()) << 80n) | BigInt(`0x${randomBytes(10).toString("hex")}`);
  let id = "";
  for (let place = 0; place < 26; place++, value >>= 5n) {
    id = "0123456789abcdefghjkmnpqrstvwxyz"[Number(value & 31n)] + id;
  }
  return id;
}

export function now(): string {
  return new Date().toISOString();
}
