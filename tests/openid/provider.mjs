// A real OpenID provider for the access tests.
//
//   node provider.mjs PORT CLIENTS [--until-stdin-ends]
//
// PORT 0 lets the system choose. CLIENTS is a JSON list of
//   {"id", "secret", "alg": "RS256"|"ES256"|"EdDSA", "claims": {…}, "ttl"?: seconds}
// A client gets JWT access tokens (client_credentials) for the resource AUDIENCE, signed with its algorithm, carrying
// its claims. Prints `ready ISSUER` when it listens. `POST /rotate` replaces every signing key.

import { createServer } from 'node:http';
import { exportJWK, generateKeyPair } from 'jose';
import Provider from 'oidc-provider';

const AUDIENCE = 'urn:platform-api';
const ALGORITHMS = ['RS256', 'ES256', 'EdDSA'];

const [port, clientsJson, ...flags] = process.argv.slice(2);
const clients = JSON.parse(clientsJson);
let generation = 0;

async function signingKey(alg) {
  const { privateKey } = await generateKeyPair(alg, { extractable: true });
  return { ...(await exportJWK(privateKey)), alg, use: 'sig', kid: `${alg}-${generation}` };
}

async function provider(issuer) {
  const keys = await Promise.all(ALGORITHMS.map(signingKey));
  generation += 1;
  const byId = new Map(clients.map((client) => [client.id, client]));
  const made = new Provider(issuer, {
    clients: clients.map(({ id, secret }) => ({
      client_id: id,
      client_secret: secret,
      grant_types: ['client_credentials'],
      redirect_uris: [],
      response_types: [],
    })),
    jwks: { keys },
    cookies: { keys: ['only for tests'] },
    extraTokenClaims: (_, token) => byId.get(token.clientId)?.claims,
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => AUDIENCE,
        getResourceServerInfo: (_, resource, client) => ({
          scope: '',
          audience: resource,
          accessTokenFormat: 'jwt',
          accessTokenTTL: byId.get(client.clientId)?.ttl ?? 600,
          jwt: { sign: { alg: byId.get(client.clientId)?.alg ?? 'RS256' } },
        }),
      },
    },
  });
  return made.callback();
}

let handle;
let issuer;
const server = createServer(async (request, response) => {
  if (request.method === 'POST' && request.url === '/rotate') {
    handle = await provider(issuer);
    response.writeHead(204).end();
    return;
  }
  handle(request, response);
});

server.listen(Number(port), '127.0.0.1', async () => {
  issuer = `http://127.0.0.1:${server.address().port}`;
  handle = await provider(issuer);
  console.log(`ready ${issuer}`);
});

for (const signal of ['SIGINT', 'SIGTERM']) {
  process.on(signal, () => process.exit(0));
}
if (flags.includes('--until-stdin-ends')) {
  // A test that was killed closes its end of the pipe, and nobody is left behind.
  process.stdin.on('end', () => process.exit(0)).resume();
}
