// The fold of a journal, as far as a runner of calls needs it, and what it decides. Pure.

import type { ErrorInfo, Json, Work } from "./wire.js";

interface Asked {
  call: string;
  tool: string;
  arguments: Json;
  approval?: boolean;
}

interface Completed {
  calls?: Asked[];
  finish_reason: string;
  usage: { input_tokens?: number; output_tokens?: number };
}

interface Queued {
  pool: string;
  priority: string;
  deadline?: string | null;
  budget_tokens?: number | null;
  request: { max_turns?: number | null; max_output_tokens?: number | null };
}

/** claim: the call is to be run. settle: it is done: publish what is due, ack. drop: another message stands for it: ack.
 *  later: its journal can't be seen yet, or nobody has agreed yet. refuse: no journal can fit: a dead letter of the message.
 *  deadLettered: it gave up before: write its record again, term. */
export type Decision = "claim" | "settle" | "drop" | "later" | "refuse" | "deadLettered";

const MAX_TURNS = 32; // of a request that names no other limit
const TERMINAL = ["task.completed", "task.failed", "task.cancelled", "task.expired"];

/** A step and the number of its replays: together they are what is claimed. */
export function stepGen(step: string, gen: number): string {
  return `${step}.g${gen}`;
}

/** What a journal says, up to stream sequence `revision`. */
export class State {
  revision = 0;
  nextN = 0;
  hole = false;
  queued: Queued | undefined;
  ended = false;
  readonly turns = new Map<number, Completed>();
  readonly results = new Set<string>();
  readonly approved = new Set<string>();
  readonly children = new Set<string>();
  readonly gens = new Map<string, number>();
  readonly bindings = new Map<string, number>();
  readonly claims = new Map<string, string[]>();
  readonly deadLetters = new Map<string, ErrorInfo>();
  tokens = 0; // put out by all turns
  spent = 0; // read and put out by all turns

  /** Add one event, which its schema has let pass. */
  fold(sequence: number, event: any): void {
    this.hole ||= event.n !== this.nextN;
    this.revision = sequence;
    this.nextN = event.n + 1;
    if (this.ended) return;
    const step = stepGen(event.step, event.gen);
    switch (event.type) {
      case "task.queued":
        this.queued = event;
        break;
      case "step.claimed":
        if (!this.bindings.has(step)) this.bindings.set(step, event.message);
        this.claims.set(step, [...(this.claims.get(step) ?? []), event.id]);
        break;
      case "turn.completed":
        this.hole = false; // deltas before the last completed turn may be gone
        this.turns.set(event.turn, event);
        this.tokens += event.usage.output_tokens ?? 0;
        this.spent += (event.usage.input_tokens ?? 0) + (event.usage.output_tokens ?? 0);
        break;
      case "tool.completed":
      case "tool.failed":
      case "subtask.completed":
        this.results.add(event.call);
        break;
      case "input.received":
        if (event.call) this.results.add(event.call);
        break;
      case "approval.resolved":
        (event.decision === "approved" ? this.approved : this.results).add(event.call);
        break;
      case "subtask.started":
        this.children.add(event.call);
        break;
      case "task.dead_lettered":
        this.deadLetters.set(step, event.error);
        break;
      case "task.replayed":
        for (const replayed of event.steps) {
          this.deadLetters.delete(stepGen(replayed.step, replayed.gen));
          this.gens.set(replayed.step, Math.max(this.gen(replayed.step), replayed.gen + 1));
        }
        break;
      default:
        this.ended = TERMINAL.includes(event.type);
    }
  }

  gen(step: string): number {
    return this.gens.get(step) ?? 0;
  }

  asked(work: Work): Asked | undefined {
    return this.turns.get(work.turn)?.calls?.find((asked) => asked.call === work.call && asked.tool === work.tool);
  }

  isLastClaim(work: Work, claim: string): boolean {
    return this.claims.get(stepGen(work.call, work.gen))?.at(-1) === claim;
  }

  /** Whether a claim still holds: only then may anything be appended for its step. */
  owns(work: Work, claim: string): boolean {
    const dead = this.deadLetters.has(stepGen(work.call, work.gen));
    return !this.ended && !dead && this.isLastClaim(work, claim) && this.gen(work.call) === work.gen;
  }
}

/** The table of section 12, for calls: the first line that fits. */
export function decide(state: State, work: Work, message: number): Decision {
  const step = stepGen(work.call, work.gen);
  const asked = state.asked(work);
  if (state.queued === undefined) return "later";
  if (state.ended) return "settle";
  if (work.gen !== state.gen(work.call)) return work.gen < state.gen(work.call) ? "drop" : "later";
  if ((state.bindings.get(step) ?? message) !== message) return "drop";
  if (state.deadLetters.has(step)) return "deadLettered";
  if (state.results.has(work.call)) return "settle";
  if (asked === undefined) return "refuse";
  if (state.children.has(work.call)) return "settle";
  return asked.approval && !state.approved.has(work.call) ? "later" : "claim";
}

/** The message of the next turn, once every call of a turn has its result; undefined if none is due. */
export function nextTurn(state: State, work: Work): { subject: string; id: string; payload: Json } | undefined {
  const completed = state.turns.get(work.turn);
  if (completed === undefined || state.queued === undefined || state.ended) return undefined;
  const { pool, priority, deadline, budget_tokens, request } = state.queued;
  const isLast =
    completed.finish_reason === "length" ||
    work.turn >= (request.max_turns ?? MAX_TURNS) ||
    state.tokens >= (request.max_output_tokens ?? Infinity) ||
    state.spent >= (budget_tokens ?? Infinity);
  if (isLast || completed.calls?.some((asked) => !state.results.has(asked.call))) return undefined;
  const { task, tenant } = work;
  const turn = work.turn + 1;
  const gen = state.gen(String(turn));
  return {
    subject: `turns.${pool}.${priority}.${tenant}`,
    id: `${task}.${turn}.g${gen}`,
    payload: { kind: "turn", task, tenant, turn, gen, pool, priority, deadline },
  };
}
