-- As much of Kong's PDK, and of lua-resty-http over real sockets, as decision.lua uses. Loaded by nginx.conf.
local shim = {}

local function http_new()
  local client = {}
  function client:set_timeouts(connect, send, read) self.timeouts = { connect, send, read } end
  function client:request_uri(uri, options)
    local host, port, path = string.match(uri, "^http://([^:/]+):(%d+)(/.*)$")
    local socket = ngx.socket.tcp()
    socket:settimeouts(self.timeouts[1], self.timeouts[2], self.timeouts[3])
    local ok, err = socket:connect(host, tonumber(port))
    if not ok then return nil, err end
    local lines = { "GET " .. path .. " HTTP/1.1", "Host: " .. host, "Connection: close" }
    for name, value in pairs(options.headers) do lines[#lines + 1] = name .. ": " .. value end
    socket:send(table.concat(lines, "\r\n") .. "\r\n\r\n")
    local line, failed = socket:receive("*l")
    if not line then return nil, failed end
    local answer = { status = tonumber(string.match(line, "^HTTP/1.1 (%d+)")), headers = {} }
    local lower = {}
    setmetatable(answer.headers, { __index = function(_, name) return lower[string.lower(name)] end })
    while true do
      line, failed = socket:receive("*l")
      if not line then return nil, failed end
      if line == "" then break end
      local name, value = string.match(line, "^([^:]+):%s*(.*)$")
      lower[string.lower(name)] = value
    end
    local length = tonumber(lower["content-length"] or 0)
    if length > 0 then answer.body = socket:receive(length) end
    socket:close()
    return answer
  end
  return client
end

package.loaded["resty.http"] = { new = http_new }
package.loaded["cjson.safe"] = require "cjson.safe"

kong = {
  log = { warn = function(...) ngx.log(ngx.WARN, ...) end },
  vault = { get = function() return os.getenv("PLATFORM_API_KEY") end },
  client = {
    -- The consumer that key-auth has found: here by what the test says.
    get_consumer = function()
      local id = ngx.var.arg_consumer
      return id and { custom_id = id } or nil
    end,
  },
  service = { request = {
    set_header = function(name, value) ngx.req.set_header(name, value) end,
    clear_header = function(name) ngx.req.clear_header(name) end,
  } },
  response = {
    set_header = function(name, value) ngx.header[name] = value end,
    exit = function(status, body, headers)
      ngx.status = status
      for name, value in pairs(headers or {}) do ngx.header[name] = value end
      ngx.header["Content-Type"] = "application/json"
      ngx.say(require("cjson.safe").encode(body))
      return ngx.exit(status)
    end,
  },
}

-- Kong compiles the snippet once for each worker and calls what it returns with each request.
function shim.load(path, platform, fail_open, deny_keep)
  local file = assert(io.open(path))
  local text = file:read("*a")
  file:close()
  local function set(name, value)
    local found
    text, found = string.gsub(text, "\nlocal " .. name .. " = [^\n]*", "\nlocal " .. name .. " = " .. value, 1)
    assert(found == 1, name)
  end
  set("PLATFORM", string.format("%q", platform))
  set("FAIL_OPEN", fail_open)
  set("DENY_KEEP_S", deny_keep)
  set("TIMEOUT_MS", "2000")
  return assert(loadstring(text))()
end

return shim
