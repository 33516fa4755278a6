"use strict";
// What the page asks of the service, and the records of a run as they come, through lost connections.

const KEY = "openzaya.key";
const LAST_KINDS = new Set(["end", "failed", "stopped"]);
const LONGEST_PAUSE = 10;

/** Something that a person should know, in a sentence. */
class Trouble extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

class ServiceClient {
  /** `askKey` gives a key where the service wants one, or null. The key stays in this tab alone. */
  constructor(askKey) {
    this.askKey = askKey;
  }

  async request(path, { method = "GET", body = null, signal = null } = {}) {
    const response = await this.send(path, { method, body, signal });
    if (response.status !== 401) return this.checked(response);
    const key = await this.askKey(sessionStorage.getItem(KEY) !== null);
    if (!key) throw new Trouble("The service wants a key.", 401);
    sessionStorage.setItem(KEY, key);
    return this.request(path, { method, body, signal });
  }

  async send(path, { method, body, signal }) {
    const headers = {};
    const key = sessionStorage.getItem(KEY);
    if (key) headers.authorization = `Bearer ${key}`;
    if (body !== null) headers["content-type"] = "application/json";
    try {
      return await fetch(path, { method, headers, signal, body: body === null ? null : JSON.stringify(body), cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Trouble("The service cannot be reached. Is it still running?");
    }
  }

  async checked(response) {
    if (response.ok) return response;
    let said = "";
    try {
      said = (await response.json()).error.message;
    } catch {
      said = `it answered ${response.status}`;
    }
    const opening = { 429: "The service is busy", 503: "The service is going down", 504: "The deadline passed", 403: "The service refuses", 413: "That is too long" }[response.status];
    throw new Trouble(`${opening ?? "The service could not do this"}: ${said}.`.replace(/\.\.$/, "."), response.status);
  }

  async models() {
    return (await (await this.request("v1/models")).json()).data;
  }

  /** Start a run; gives its id. */
  async start(body) {
    return (await (await this.request("runs", { method: "POST", body })).json()).id;
  }

  async cancel(id) {
    await this.request(`runs/${id}/cancel`, { method: "POST" });
  }

  async rollout(id, round, index) {
    return (await this.request(`runs/${id}/rollouts/${round}/${index}`)).json();
  }

  /** The run as a file. */
  async page(id) {
    return (await this.request(`runs/${id}/page`)).blob();
  }

  /** Every record of a run until its last. A lost connection is taken up again; `onlost` is told whether it is lost. */
  async *records(id, signal, onlost) {
    let seen = 0;
    let pause = 0.5;
    for (;;) {
      try {
        const response = await this.request(`runs/${encodeURIComponent(id)}/events?after=${seen}`, { signal });
        onlost(false);
        pause = 0.5;
        for await (const [number, record] of eventsOf(response)) {
          seen = number;
          yield record;
          if (LAST_KINDS.has(record.kind)) return;
        }
      } catch (error) {
        if (signal.aborted) return;
        if (error.status && error.status !== 429 && error.status < 500) throw error;
      }
      onlost(true);
      await new Promise((resolve) => setTimeout(resolve, 1000 * pause));
      pause = Math.min(LONGEST_PAUSE, 2 * pause);
      if (signal.aborted) return;
    }
  }
}

/** (number, record) of each event of a response. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const frames = (pending + value).split("\n\n");
    pending = frames.pop();
    for (const frame of frames) {
      const number = frame.match(/^id: (\d+)$/m);
      const data = frame.match(/^data: (.*)$/m);
      if (number && data) yield [Number(number[1]), JSON.parse(data[1])];
    }
  }
}
