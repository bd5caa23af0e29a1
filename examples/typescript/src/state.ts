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
  budget_left_tokens?: number | null;
}

interface Queued {
  priority: string;
  deadline?: string | null;
  budget_tokens?: number | null;
  request: { pool?: string | null; max_turns?: number | null; max_output_tokens?: number | null };
}

/** The next try of a step whose message is gone: when it is due, and how many have failed. */
interface NextTry {
  atMilliseconds: number;
  tries: number;
}

/** claim: the call is to be run. settle: it is done: publish what is due, ack. drop: another message stands for it: ack.
 *  later: its journal can't be seen yet, or nobody has agreed yet. refuse: no journal can fit: a dead letter of the message.
 *  deadLettered: it gave up before: write its record again, term. waits: a timer has taken its place: publish
 *  that again, ack. */
export type Decision = "claim" | "settle" | "drop" | "later" | "refuse" | "deadLettered" | "waits" | "moved";

const MAX_TURNS = 32; // of a request that names no other limit
const DEFAULT_POOL = "default"; // of a request that names no other
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
  pool = DEFAULT_POOL; // of the turns to come
  readonly turns = new Map<number, Completed>();
  readonly results = new Set<string>();
  readonly approved = new Set<string>();
  readonly children = new Set<string>();
  readonly gens = new Map<string, number>();
  readonly bindings = new Map<string, number>();
  readonly nextTries = new Map<string, NextTry>();
  readonly timedTries = new Map<string, number>(); // failed tries when a timer last took the message's place
  readonly releases = new Map<string, number>(); // how often it lost its owner and its message
  readonly released = new Set<string>(); // and was not claimed since
  readonly claims = new Map<string, string[]>();
  readonly deadLetters = new Map<string, ErrorInfo>();
  readonly repaired = new Map<string, ErrorInfo>(); // replayed since: their records may still have to be written
  tokens = 0; // put out by all turns
  spent = 0; // read and put out by all turns

  /** Add one event, which its schema has let pass. */
  fold(sequence: number, event: any): void {
    this.hole ||= event.n !== this.nextN;
    this.revision = sequence;
    this.nextN = event.n + 1;
    if (this.ended) return;
    const step = stepGen(event.step, event.gen ?? 0);
    switch (event.type) {
      case "task.queued":
        this.queued = event;
        this.pool = event.request.pool ?? DEFAULT_POOL;
        break;
      case "step.claimed":
        if (!this.bindings.has(step)) this.bindings.set(step, event.message);
        this.nextTries.delete(step);
        this.released.delete(step);
        this.claims.set(step, [...(this.claims.get(step) ?? []), event.id]);
        break;
      case "step.released": // another message is published for it
        this.bindings.delete(step);
        this.nextTries.delete(step);
        this.releases.set(step, (this.releases.get(step) ?? 0) + 1);
        this.released.add(step);
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
          const dead = stepGen(replayed.step, replayed.gen);
          const error = this.deadLetters.get(dead);
          if (error !== undefined) this.repaired.set(dead, error);
          this.deadLetters.delete(dead);
          this.gens.set(replayed.step, Math.max(this.gen(replayed.step), replayed.gen + 1));
        }
        this.#edit(event.edits ?? {});
        break;
      case "task.retrying":
        if (event.timer) {
          this.bindings.delete(step); // its message is gone: the one that the timer brings may be claimed
          this.timedTries.set(step, event.tries);
          this.nextTries.set(step, { atMilliseconds: Date.parse(event.time) + event.delay_seconds * 1000, tries: event.tries });
        }
        break;
      default:
        this.ended = TERMINAL.includes(event.type);
    }
  }

  /** Change what a replay has changed, from here on: of the past it changes nothing. */
  #edit(edits: { pool?: string | null; arguments?: Record<string, Json> | null }): void {
    this.pool = edits.pool ?? this.pool;
    for (const completed of this.turns.values()) {
      for (const asked of completed.calls ?? []) asked.arguments = edits.arguments?.[asked.call] ?? asked.arguments;
    }
  }

  /** Why a step gave up, whether it was replayed since or not. */
  letter(step: string): ErrorInfo | undefined {
    return this.deadLetters.get(step) ?? this.repaired.get(step);
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
    const step = stepGen(work.call, work.gen);
    const lost = this.deadLetters.has(step) || this.released.has(step);
    return !this.ended && !lost && this.isLastClaim(work, claim) && this.gen(work.call) === work.gen;
  }
}

/** The table of section 12, for calls: the first line that fits. */
export function decide(state: State, work: Work, message: number): Decision {
  const step = stepGen(work.call, work.gen);
  const asked = state.asked(work);
  if (state.queued === undefined) return "later";
  if (state.ended) return "settle";
  if (work.gen > state.gen(work.call)) return "later";
  if (work.gen < state.gen(work.call)) return state.repaired.has(step) ? "deadLettered" : "drop";
  const timed = state.timedTries.get(step) ?? 0;
  if (work.tries < timed) return state.nextTries.has(step) ? "waits" : "drop"; // a timer has taken this message's place
  const releases = state.releases.get(step) ?? 0;
  if (work.releases < releases) return state.released.has(step) && !state.results.has(work.call) ? "moved" : "drop";
  if (work.tries > timed || work.releases > releases) return "later";
  if ((state.bindings.get(step) ?? message) !== message) return "drop";
  if (state.deadLetters.has(step)) return "deadLettered";
  if (state.results.has(work.call)) return "settle";
  if (asked === undefined) return "refuse";
  if (state.children.has(work.call)) return "settle";
  return asked.approval && !state.approved.has(work.call) ? "later" : "claim";
}

/** A message to publish: what its payload is, and its headers. */
export interface Due {
  name: string;
  subject: string;
  fields: Record<string, string>;
  payload: Json;
}

/** The timer that brings a step's next try. */
export function retryTimer(state: State, work: Work): Due {
  const { task, tenant, call, gen } = work;
  const { atMilliseconds, tries } = state.nextTries.get(stepGen(call, gen))!;
  const place = `retry.${tenant}.${task}.${call}-g${gen}-t${tries}`;
  const at = new Date(Math.ceil(atMilliseconds / 1000) * 1000); // in whole seconds, and never early
  return {
    name: "control.retry",
    subject: `timers.at.${place}`,
    fields: {
      "Nats-Msg-Id": `${task}.${call}.g${gen}.t${tries}`,
      "Nats-Schedule": `@at ${at.toISOString().replace(".000", "")}`,
      "Nats-Schedule-Target": `timers.fired.${place}`,
      "Nats-Schedule-TTL": "2592000s",
    },
    payload: { kind: "retry", task, tenant, by: "taskmesh", step: call, gen, tries },
  };
}

/** The message that stands for a released call now. */
export function movedWork(state: State, work: Work): Due {
  const { task, tenant, turn, call, gen, tool } = work;
  const step = stepGen(call, gen);
  const tries = state.timedTries.get(step) ?? 0;
  const releases = state.releases.get(step) ?? 0;
  const id = tries > 0 ? `${task}.${call}.g${gen}.t${tries}` : `${task}.${turn}.${call}.g${gen}`;
  return {
    name: "work.tool",
    subject: `tools.${tool}`,
    fields: { "Nats-Msg-Id": `${id}.r${releases}` },
    payload: { kind: "tool", task, tenant, turn, call, gen, tries, releases, tool, arguments: state.asked(work)!.arguments, deadline: state.queued!.deadline },
  };
}

/** The message of the next turn, once every call of a turn has its result; undefined if none is due. */
export function nextTurn(state: State, work: Work): Due | undefined {
  const completed = state.turns.get(work.turn);
  if (completed === undefined || state.queued === undefined || state.ended) return undefined;
  const { priority, deadline, budget_tokens, request } = state.queued;
  const { pool } = state;
  const isLast =
    completed.finish_reason === "length" ||
    work.turn >= (request.max_turns ?? MAX_TURNS) ||
    state.tokens >= (request.max_output_tokens ?? Infinity) ||
    // What its sub-tasks have used counts too: its writer knew. One of before counted the turns alone.
    (completed.budget_left_tokens ?? (budget_tokens ?? Infinity) - state.spent) <= 0;
  if (isLast || completed.calls?.some((asked) => !state.results.has(asked.call))) return undefined;
  const { task, tenant } = work;
  const turn = work.turn + 1;
  const gen = state.gen(String(turn));
  return {
    name: "work.turn",
    subject: `turns.${pool}.${priority}.${tenant}`,
    fields: { "Nats-Msg-Id": `${task}.${turn}.g${gen}` },
    payload: { kind: "turn", task, tenant, turn, gen, pool, priority, deadline },
  };
}
