-- Asks platform-api what to do with a request, in Kong's post-function (access): it runs last, so the consumer is known.
-- Needs untrusted_lua_sandbox_requires = resty.http,cjson.safe and the platform's key as {vault://env/platform-api-key}.
local http = require "resty.http"
local cjson = require "cjson.safe"

local PLATFORM = "http://platform-api:8082"
local KEY = "{vault://env/platform-api-key}"
local FAIL_OPEN = true     -- without an answer: true lets requests pass and says so, false answers 503
local TIMEOUT_MS = 50      -- to connect, and again to be answered
local RETRY_S = 1          -- how long a platform that did not answer is left alone, for each tenant
local DENY_KEEP_S = 300    -- a denial outlives the platform for this long, or until its period ends
local ENTRIES_MAX = 10000  -- decisions that one worker remembers

local entries, count = {}, 0

-- Seconds since some day: only differences are used, so the two clocks need not agree.
local function seconds(text)
  local y, m, d, h, min, s = string.match(text or "", "^(%d+)-(%d+)-(%d+)T(%d+):(%d+):([%d.]+)Z$")
  if not y then return nil end
  y, m, d = tonumber(y), tonumber(m), tonumber(d)
  if m <= 2 then y, m = y - 1, m + 12 end
  local days = 365 * y + math.floor(y / 4) - math.floor(y / 100) + math.floor(y / 400) + math.floor((153 * m - 457) / 5) + d
  return ((days * 24 + tonumber(h)) * 60 + tonumber(min)) * 60 + tonumber(s)
end

local function ask(tenant, known)
  local client = http.new()
  client:set_timeouts(TIMEOUT_MS, TIMEOUT_MS, TIMEOUT_MS)
  local headers = { ["X-API-Key"] = kong.vault and kong.vault.get(KEY) or KEY, ["If-None-Match"] = known and known.etag }
  local answer = client:request_uri(PLATFORM .. "/v1/quotas/" .. tenant .. "/decision", { headers = headers })
  if not answer or (answer.status ~= 200 and answer.status ~= 304) then
    return nil, answer and answer.status or "none"
  end
  local now = ngx.now()
  local fresh = tonumber(string.match(answer.headers["Cache-Control"] or "", "max%-age=(%d+)")) or 1
  if answer.status == 304 and known then
    known.refresh_at, known.valid_until = now + fresh, now + fresh + known.grace
    known.answered_at = now
    return known
  end
  local said = cjson.decode(answer.body or "")
  local refresh, valid = said and seconds(said.refreshAfter), said and seconds(said.validUntil)
  if not (refresh and valid) then return nil, "unreadable" end
  local reset = type(said.resetAt) == "string" and seconds(said.resetAt) or nil
  local grace = math.max(valid - refresh, 0)
  return {
    decision = said.decision,
    etag = answer.headers["ETag"],
    grace = grace,
    answered_at = now,
    refresh_at = now + fresh,
    valid_until = now + fresh + grace,
    reset_at = reset and math.max(now + reset - refresh + fresh, now),
  }
end

local function decide(tenant)
  local entry, now = entries[tenant], ngx.now()
  if entry and now < entry.refresh_at then return entry.decision, entry end
  local answer, why = ask(tenant, entry and entry.etag and entry)
  if answer then
    if not entries[tenant] then
      if count >= ENTRIES_MAX then entries, count = {}, 0 end
      count = count + 1
    end
    entries[tenant] = answer
    return answer.decision, answer
  end
  if why == 404 then return "unknown" end
  kong.log.warn("platform-api did not answer: ", why)
  if not entry then return "unavailable" end
  now = ngx.now()
  entry.refresh_at = now + RETRY_S
  local kept = math.min(entry.reset_at or math.huge, entry.answered_at + DENY_KEEP_S)
  if now < entry.valid_until or (entry.decision == "deny" and now < kept) then return entry.decision, entry end
  entries[tenant], count = nil, count - 1
  return "unavailable"
end

return function()
  -- The tenant is the authenticated consumer's, whatever the client said.
  local consumer = kong.client.get_consumer()
  local tenant = consumer and consumer.custom_id
  kong.service.request.clear_header("X-Tenant-Id")
  if not tenant or not string.match(tenant, "^[%x-]+$") then
    return kong.response.exit(403, { message = "No tenant is known by these credentials" })
  end
  kong.service.request.set_header("X-Tenant-Id", tenant)

  local decision, entry = decide(tenant)
  -- http-log shows it: requests that passed without an answer can be found.
  kong.response.set_header("X-Platform-Api-Decision", decision)
  local headers = { ["X-Platform-Api-Decision"] = decision }
  if decision == "deny" then
    local wait = entry.reset_at and math.ceil(entry.reset_at - ngx.now())
    headers["Retry-After"] = wait and tostring(math.max(wait, 1)) or nil
    return kong.response.exit(429, { message = "The quota is used up" }, headers)
  elseif decision == "unknown" then
    return kong.response.exit(403, { message = "No tenant is known by these credentials" }, headers)
  elseif decision == "unavailable" and not FAIL_OPEN then
    headers["Retry-After"] = tostring(RETRY_S)
    return kong.response.exit(503, { message = "The quota cannot be asked for" }, headers)
  end
end
