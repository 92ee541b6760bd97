// A real OpenID provider for the access tests.
//
//   node provider.mjs PORT CLIENTS [--until-stdin-ends]
//
// PORT 0 lets the system choose. CLIENTS is a JSON list of
//   {"id", "secret", "alg": "RS256"|"ES256"|"EdDSA", "claims": {…}, "ttl"?: seconds, "opaque"?: true}
// A client gets access tokens (client_credentials) for the resource AUDIENCE, carrying its claims: JWTs signed with its
// algorithm, or opaque ones, which it may have looked up. A client with "redirectUris" (and "backChannelLogoutUri") is one
// that people log in with; whoever comes is logged in as "jane" at once. Prints `ready ISSUER` when it listens.
// `POST /rotate` replaces every signing key; `POST /users` says what is claimed of whom, clients among them:
// {"jane": {…}}. `GET /issued` answers with all that was handed out at the token endpoint, oldest first.

import { createServer } from 'node:http';
import { exportJWK, generateKeyPair } from 'jose';
import Provider from 'oidc-provider';

const AUDIENCE = 'urn:platform-api';
const ALGORITHMS = ['RS256', 'ES256', 'EdDSA'];
const WHOEVER = 'jane';

const [port, clientsJson, ...flags] = process.argv.slice(2);
const clients = JSON.parse(clientsJson);
let generation = 0;
let users = {};
const issued = [];

async function signingKey(alg) {
  const { privateKey } = await generateKeyPair(alg, { extractable: true });
  return { ...(await exportJWK(privateKey)), alg, use: 'sig', kid: `${alg}-${generation}` };
}

function described({ id, secret, redirectUris, backChannelLogoutUri }) {
  const known = { client_id: id, client_secret: secret };
  if (!redirectUris) {
    return { ...known, grant_types: ['client_credentials'], redirect_uris: [], response_types: [] };
  }
  return {
    ...known,
    grant_types: ['authorization_code', 'refresh_token'],
    redirect_uris: redirectUris,
    response_types: ['code'],
    post_logout_redirect_uris: redirectUris.map((uri) => new URL(uri).origin),
    backchannel_logout_uri: backChannelLogoutUri,
    backchannel_logout_session_required: true,
  };
}

async function provider(issuer) {
  const keys = await Promise.all(ALGORITHMS.map(signingKey));
  generation += 1;
  const byId = new Map(clients.map((client) => [client.id, client]));
  const made = new Provider(issuer, {
    clients: clients.map(described),
    jwks: { keys },
    cookies: { keys: ['only for tests'] },
    extraTokenClaims: (_, token) => ({ ...byId.get(token.clientId)?.claims, ...users[token.clientId] }),
    findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id, ...users[id] }) }),
    claims: { openid: ['sub', 'tenant', 'roles', 'name', 'preferred_username', 'groups'] },
    conformIdTokenClaims: false,
    issueRefreshToken: () => true,
    rotateRefreshToken: true,
    pkce: { required: () => true },
    interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
    features: {
      clientCredentials: { enabled: true },
      introspection: { enabled: true },
      backchannelLogout: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => AUDIENCE,
        getResourceServerInfo: (_, resource, client) => ({
          scope: '',
          audience: resource,
          accessTokenFormat: byId.get(client.clientId)?.opaque ? 'opaque' : 'jwt',
          accessTokenTTL: byId.get(client.clientId)?.ttl ?? 600,
          jwt: { sign: { alg: byId.get(client.clientId)?.alg ?? 'RS256' } },
        }),
      },
    },
  });
  made.on('grant.success', (context) => issued.push(context.body));
  const callback = made.callback();
  return (request, response) =>
    request.url.startsWith('/interaction/') ? agree(made, request, response) : callback(request, response);
}

// Where a person would say who they are, and that they agree.
async function agree(made, request, response) {
  const { prompt, params, grantId, session } = await made.interactionDetails(request, response);
  if (prompt.name === 'login') {
    const login = { accountId: WHOEVER };
    return made.interactionFinished(request, response, { login }, { mergeWithLastSubmission: false });
  }
  const grant = grantId
    ? await made.Grant.find(grantId)
    : new made.Grant({ accountId: session.accountId, clientId: params.client_id });
  grant.addOIDCScope('openid profile email offline_access');
  grant.addResourceScope(AUDIENCE, '');
  const consent = { grantId: await grant.save() };
  return made.interactionFinished(request, response, { consent }, { mergeWithLastSubmission: true });
}

async function body(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return JSON.parse(Buffer.concat(chunks).toString());
}

let handle;
let issuer;
const server = createServer(async (request, response) => {
  if (request.method === 'POST' && request.url === '/rotate') {
    handle = await provider(issuer);
    response.writeHead(204).end();
    return;
  }
  if (request.method === 'POST' && request.url === '/users') {
    users = await body(request);
    response.writeHead(204).end();
    return;
  }
  if (request.method === 'GET' && request.url === '/issued') {
    response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(issued));
    return;
  }
  Promise.resolve(handle(request, response)).catch((error) => response.writeHead(500).end(String(error)));
});

server.listen(Number(port), '127.0.0.1', async () => {
  issuer = `http://127.0.0.1:${server.address().port}`;
  handle = await provider(issuer);
  console.log(`ready ${issuer}`);
});

// Whoever has read `ready` need not read what the library has to say after it.
process.stdout.on('error', () => {});

for (const signal of ['SIGINT', 'SIGTERM']) {
  process.on(signal, () => process.exit(0));
}
if (flags.includes('--until-stdin-ends')) {
  // A test that was killed closes its end of the pipe, and nobody is left behind.
  process.stdin.on('end', () => process.exit(0)).resume();
}
