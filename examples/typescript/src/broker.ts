// The broker: core NATS alone, with JetStream's answers read as JSON.

import { connect, createInbox, headers, type Msg, type NatsConnection } from "@nats-io/transport-node";

const REQUEST_MILLISECONDS = 5000;

/** The broker's own word that it did not do something. Anything else that is thrown leaves that open. */
export class Refusal extends Error {
  constructor(readonly number: number, description: string) {
    super(`${number} ${description}`);
  }
}

export class Broker {
  #connected = true;
  readonly #api: string;

  private constructor(readonly connection: NatsConnection, domain?: string) {
    this.#api = domain ? `$JS.${domain}.API.` : "$JS.API.";
    void this.#watch();
  }

  /** `url` may hold a login, which the client does not look for there: `nats://token@host`, `nats://user:pass@host`. */
  static async connect(url: string, domain?: string): Promise<Broker> {
    const { host, username, password } = new URL(url);
    const [user, pass] = [decodeURIComponent(username), decodeURIComponent(password)];
    const login = pass ? { user, pass } : user ? { token: user } : {};
    return new Broker(await connect({ servers: host, ...login, maxReconnectAttempts: -1 }), domain);
  }

  async #watch(): Promise<void> {
    for await (const status of this.connection.status()) {
      if (status.type === "disconnect") this.#connected = false;
      if (status.type === "reconnect") this.#connected = true;
    }
  }

  /** Throws while disconnected: who has given up on a publish must know that no buffer sends it later. */
  demandConnection(): void {
    if (!this.#connected) throw new Error("the broker is away");
  }

  async request(subject: string, payload: string): Promise<Msg> {
    this.demandConnection();
    return this.connection.request(subject, payload, { timeout: REQUEST_MILLISECONDS });
  }

  /** Publish into a stream; returns the message's sequence. */
  async publish(subject: string, payload: string, fields: Record<string, string | undefined>): Promise<number> {
    this.demandConnection();
    const all = headers();
    for (const [name, value] of Object.entries(fields)) if (value) all.set(name, value);
    const answer = await this.connection.request(subject, payload, { timeout: REQUEST_MILLISECONDS, headers: all });
    return this.#result(answer).seq as number;
  }

  /** Ask JetStream's API. */
  async api(subject: string, body: unknown): Promise<any> {
    return this.#result(await this.request(this.#api + subject, JSON.stringify(body)));
  }

  #result(answer: Msg): any {
    const result = answer.json<any>();
    if (result.error) throw new Refusal(result.error.err_code, result.error.description);
    return result;
  }

  /** Pull one message of a consumer; undefined if none comes in time. */
  async pull(stream: string, consumer: string, milliseconds: number): Promise<Msg | undefined> {
    this.demandConnection();
    const body = JSON.stringify({ batch: 1, expires: milliseconds * 1_000_000 });
    const inbox = this.connection.subscribe(createInbox(), { max: 1, timeout: milliseconds + 1000 });
    this.connection.publish(`${this.#api}CONSUMER.MSG.NEXT.${stream}.${consumer}`, body, { reply: inbox.getSubject() });
    for await (const message of inbox) {
      if (message.headers === undefined || message.headers.code === 0) return message;
      if (message.headers.code === 404 || message.headers.code === 408) return undefined;
      throw new Error(`a pull of ${consumer} was answered ${message.headers.status}`);
    }
    return undefined;
  }

  /** A page of a batched direct get (NATS ADR-31): any replica answers, perhaps a moment behind. */
  async page(filter: string, after: number): Promise<{ messages: Msg[]; more: boolean }> {
    this.demandConnection();
    const body = JSON.stringify({ seq: after + 1, batch: 256, max_bytes: 512 * 1024, next_by_subj: filter });
    const inbox = this.connection.subscribe(createInbox());
    const limit = setTimeout(() => inbox.unsubscribe(), REQUEST_MILLISECONDS);
    this.connection.publish(`${this.#api}DIRECT.GET.EVENTS`, body, { reply: inbox.getSubject() });
    const messages: Msg[] = [];
    try {
      for await (const message of inbox) {
        const code = message.headers?.code ?? 0;
        if (code === 204) return { messages, more: message.headers?.get("Nats-Num-Pending") !== "0" };
        if (code === 404) return { messages, more: false };
        if (code !== 0) throw new Error(`direct get from EVENTS answered ${message.headers?.status}`);
        messages.push(message);
      }
      throw new Error("direct get from EVENTS was not answered");
    } finally {
      clearTimeout(limit);
      inbox.unsubscribe();
    }
  }
}
