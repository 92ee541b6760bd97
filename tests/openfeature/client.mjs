// OpenFeature's SDK, asked from the tests.
//
//   node client.mjs URL CREDENTIAL QUESTIONS
//
// QUESTIONS is a JSON list of {"kind": "boolean"|"string"|"number"|"object", "flag", "default", "context"?}. Prints the list
// of evaluation details, as the SDK gives them to an application.

import { OpenFeature } from '@openfeature/server-sdk';
import { OFREPProvider } from '@openfeature/ofrep-provider';

const [baseUrl, credential, questions] = process.argv.slice(2);
OpenFeature.setLogger({ error() {}, warn() {}, info() {}, debug() {} });
await OpenFeature.setProviderAndWait(
  new OFREPProvider({ baseUrl, headers: [['Authorization', `Bearer ${credential}`]] }),
);
const client = OpenFeature.getClient();
const ask = {
  boolean: (...question) => client.getBooleanDetails(...question),
  string: (...question) => client.getStringDetails(...question),
  number: (...question) => client.getNumberDetails(...question),
  object: (...question) => client.getObjectDetails(...question),
};
const answers = [];
for (const { kind, flag, default: fallback, context } of JSON.parse(questions)) {
  answers.push(await ask[kind](flag, fallback, context ?? {}));
}
console.log(JSON.stringify(answers));
await OpenFeature.close();
