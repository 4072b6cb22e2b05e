-- Drives job_submit.lua as slurmctld would, with a small stand-in for its `slurm` table.
-- Reads Lua chunks from standard input, one a line; each must evaluate to {code, verdict-or-error, messages, logs, job}.
-- arg[1]: the filter. Answers are printed as netstrings, so that any byte may be in them.
local NO_VAL16, NO_VAL = 65534, 4294967294

local messages, logs = {}, {}
slurm = {
  SUCCESS = 0,
  ERROR = -1,
  ESLURM_ACCESS_DENIED = 2002,
  log_user = function(format, ...)
    messages[#messages + 1] = string.format(format, ...)
  end,
  log_error = function(format, ...)
    logs[#logs + 1] = string.format(format, ...)
  end,
  log_info = function() end,
}

-- Unset strings are nil and unset numbers a NO_VAL, as in slurmctld; unknown fields cannot be set.
local numbers = {
  shared = NO_VAL16, requeue = NO_VAL16, het_job_offset = NO_VAL, min_nodes = NO_VAL, max_nodes = NO_VAL,
  time_limit = NO_VAL, priority = NO_VAL, nice = NO_VAL, begin_time = 0, end_time = 0, argc = 0, immediate = 0,
  user_id = NO_VAL, min_cpus = NO_VAL, mail_type = NO_VAL16,
}
function new_job(values)
  local kept, stubborn = {}, values.stubborn
  values.stubborn = nil
  for name, value in pairs(numbers) do
    kept[name] = value
  end
  for name, value in pairs(values) do
    kept[name] = value
  end
  return setmetatable({}, {
    __index = function(_, name)
      if name == values.explode then
        error("canary of the job")
      end
      return kept[name]
    end,
    __newindex = function(_, name, value)
      if name ~= stubborn then
        kept[name] = value
      end
    end,
  })
end

function repeated(text, count)
  return string.rep(text, count)
end

parts = {
  open = { name = "open", flag_default = 1, nodes = "n[1-9]", max_share = 1 },
  phi = { name = "phi", flag_default = 0, nodes = "p[01-04],q-st-[1-2],solo", max_share = 0 },
  four = { name = "four", flag_default = 0, nodes = "n[1-9]", max_share = 4 },
  -- OverSubscribe=FORCE:4 and FORCE:1
  force = { name = "force", flag_default = 0, nodes = "n[1-9]", max_share = 32772 },
  force1 = { name = "force1", flag_default = 0, nodes = "n[1-9]", max_share = 32769 },
  silent = { name = "silent", flag_default = 0, nodes = "n[1-9]" },
}

local ok, result = pcall(dofile, arg[1])
local function netstring(text)
  text = tostring(text)
  io.write(#text, ":", text, ",")
end
if not ok then
  netstring("load-error")
  netstring(result)
  os.exit(3)
end

for line in io.lines() do
  messages, logs = {}, {}
  last_job = nil
  local chunk = assert(loadstring and loadstring(line) or load(line))
  local code = chunk()
  netstring(type(code))
  netstring(code)
  netstring(table.concat(messages, "\n"))
  netstring(table.concat(logs, "\n"))
  local job = last_job or {}
  for _, name in ipairs({ "features", "prefer", "extra", "admin_comment", "shared", "requeue", "partition" }) do
    local readable, value = pcall(function()
      return job[name]
    end)
    netstring(readable and value or nil)
  end
  io.write("\n")
  io.flush()
end
