/** What the page asks of the service. Whatever goes wrong comes out as a Trouble, whose sentence says what to do. */

const TOKEN_KEY = "saysee-token";
const MOST_TRIES = 4;
const LONGEST_WAIT = 30; // seconds

export class Trouble extends Error {
  /**
   * @param {string} sentence for the person who asked
   * @param {boolean} again whether the same may succeed when it is tried again
   */
  constructor(sentence, again = false) {
    super(sentence);
    this.again = again;
  }
}

/** Set by the page: asks the person for the token; resolves to null if they give none. */
export const person = {
  /** @type {(wrong: boolean) => Promise<string | null>} */
  giveToken: async () => null,
  /** @type {(seconds: number) => void} told when the service is busy */
  wait: () => {},
};

export function keepToken(token) {
  sessionStorage.setItem(TOKEN_KEY, token);
}

export const about = async (signal) => (await ask("about", { signal })).json();

/**
 * @param {{audio?: Blob, image?: Blob, text?: string, vector?: string}} query exactly one of them
 * @param {string | null} kind what to find; null for what is usual
 */
export async function search(query, kind, signal) {
  const form = new FormData();
  for (const [name, value] of Object.entries(query)) {
    form.append(name, value, ...(value instanceof Blob ? ["query"] : []));
  }
  if (kind) form.append("kind", kind);
  return (await ask("search", { method: "POST", body: form, signal })).json();
}

export async function attention(audio, id, signal) {
  const form = new FormData();
  form.append("audio", audio, "query");
  form.append("id", String(id));
  return (await ask("attention", { method: "POST", body: form, signal })).json();
}

/** A file of the index as a blob. */
export const file = async (url, signal) => (await ask(url.replace(/^\//, ""), { signal })).blob();

async function ask(path, options) {
  for (let tried = 1; ; tried++) {
    const token = sessionStorage.getItem(TOKEN_KEY);
    const response = await send(path, token, options);
    if (response.ok) return response;
    if (response.status === 401) {
      if (token === sessionStorage.getItem(TOKEN_KEY)) await newToken();
      continue;
    }
    const seconds = Number(response.headers.get("Retry-After"));
    if (response.status === 503 && seconds && tried < MOST_TRIES) {
      await pause(Math.min(seconds, LONGEST_WAIT), options.signal);
      continue;
    }
    throw await refusal(response);
  }
}

async function send(path, token, options) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  try {
    return await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The service does not answer. Start it again (saysee serve INDEX), then try again.", true);
  }
}

async function refusal(response) {
  const answer = await response.json().catch(() => ({}));
  const sentence = typeof answer.detail === "string" ? answer.detail : `The service refused (${response.status})`;
  return new Trouble(sentence.replace(/([^.!?])$/, "$1."), response.status >= 500);
}

async function pause(seconds, signal) {
  person.wait(seconds);
  await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
  signal?.throwIfAborted();
}

let asking = null;

/** One question at a time: a grid of pictures meets the same refusal a dozen times. */
function newToken() {
  asking ??= (async () => {
    const token = await person.giveToken(sessionStorage.getItem(TOKEN_KEY) !== null);
    if (token === null) throw new Trouble("This service answers only with its token. Try again, and enter it.", true);
    keepToken(token);
  })().finally(() => {
    asking = null;
  });
  return asking;
}
