-- One static POST; its body comes from the file named by LOAD_BODY.
local f = assert(io.open(os.getenv("LOAD_BODY"), "rb"))
wrk.method = "POST"
wrk.body = f:read("*a")
f:close()
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer sk-mock-0123456789abcdef0123456789abcdef"
done = function(s, l, r)
  io.write(string.format('JSON {"requests":%d,"duration_us":%d,"bad":%d}\n', s.requests, s.duration,
    s.errors.connect + s.errors.read + s.errors.write + s.errors.status + s.errors.timeout))
end
