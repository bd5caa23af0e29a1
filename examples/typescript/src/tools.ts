// The tools of this runner. What a tool is lies here; how its calls are run, in runner.ts.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Json } from "./wire.js";

/** A tool: what it says of itself to the mesh, and the function behind it. */
export interface Tool {
  name: string;
  /** What a model reads. */
  description: string;
  /** JSON Schema of the arguments. */
  parameters: Json;
  timeoutSeconds: number;
  /** A call may be run twice. */
  idempotent: boolean;
  /** It changes what can't be changed back. */
  destructive: boolean;
  approval: "never" | "destructive" | "always";
  run(folder: string, given: any, signal: AbortSignal): Promise<unknown>;
}

/** A tool's own refusal: this call had no effect, and can't succeed. */
export class Refused extends Error {}

export const tools: Tool[] = [
  {
    name: "longest_line",
    description: "Finds the longest line of a text file.",
    parameters: {
      type: "object",
      properties: { file: { type: "string", pattern: "^[a-z0-9_-]{1,64}\\.txt$", description: "a file, such as notes.txt" } },
      required: ["file"],
      additionalProperties: false,
    },
    timeoutSeconds: 30,
    idempotent: true,
    destructive: false,
    approval: "never",
    run: longestLine,
  },
];

async function longestLine(folder: string, given: { file: string }, signal: AbortSignal): Promise<unknown> {
  const text = await readFile(join(folder, given.file), { encoding: "utf-8", signal }).catch((error: NodeJS.ErrnoException) => {
    throw error.code === "ENOENT" ? new Refused(`there is no file ${given.file}`) : error;
  });
  const lines = text.split("\n");
  const line = lines.reduce((longest, next) => (next.length > longest.length ? next : longest), "");
  return { number: lines.indexOf(line) + 1, line };
}
