// Reads JSON lines of {secret, headers, body} from stdin; each must bear a good signature, and none when it is changed.
import { createInterface } from "node:readline";
import { Webhook } from "standardwebhooks";

let verified = 0;
for await (const line of createInterface({ input: process.stdin })) {
  const { secret, headers, body } = JSON.parse(line);
  const hook = new Webhook(secret);
  hook.verify(body, headers);
  let refused = false;
  try {
    hook.verify(`${body} `, headers);
  } catch {
    refused = true;
  }
  if (!refused) throw new Error("a changed body was taken");
  verified += 1;
}
console.log(`verified ${verified}`);
