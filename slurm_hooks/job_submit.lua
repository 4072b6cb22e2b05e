-- secure-slurm's job_submit filter: asks the decision daemon about every job and every change, and obeys its answer.
-- One file for Slurm 23.11 to 26.05, Lua 5.1 to 5.4; needs LuaSocket. Installed next to slurm.conf.
--
-- Rules this file keeps, because slurmctld holds locks while it runs and accepts a job whenever it is unsure:
--   * whatever goes wrong, the answer is the number REFUSED: nil, a non-number and, up to 25.11, a Lua error ACCEPT a job
--     (job_submit_lua.c, slurm_lua.c);
--   * only an answer that repeats this request's nonce and says "allow" allows;
--   * one deadline for the whole exchange; after three timeouts in a row it refuses at once for five seconds;
--   * it starts no program and reads no file but the configuration;
--   * it lets an untagged job pass by itself (`untagged = "local"`, decision 0018) only if nothing about the job hints at
--     a tag, it comes from no compute node, the daemon has confirmed in this second that it decides by the policy which
--     the configuration was made from, and the daemon could be told. In any other case it asks.
local CONFIG = "/etc/secure-slurm/job_submit.conf.lua"

local VALUE_LIMIT = 8192 -- bytes of one field; longer ones are cut, and flagged
local NODES_LIMIT = 131072 -- bytes of the node lists, which the admin writes
local LIMITS = { dependency = 131072 } -- a list of a thousand jobs is nothing unusual; slurmctld takes no longer one
local LINES_LIMIT = 64 -- #SECURE lines of a script
local BODY_LIMIT = 1024 * 1024
local HEADER_LIMIT = 12 -- "SS1 1048576\n"
local HEADER_LEAST = 6 -- "SS1 0\n"
local FIELD_LIMIT = 256
local TIMEOUTS_LIMIT = 3
local QUIET_SECONDS = 5
local CONFIG_SECONDS = 10
local CONFIRMED_SECONDS = 1 -- as long as the daemon itself may take to see a new policy
local NOTES_LIMIT = 128 -- notes that the daemon has not confirmed yet; as many fit into its socket

-- What is sent of a job: to add a field, add its name.
local STRINGS = {
  "account", "acctg_freq", "admin_comment", "alloc_node", "array_inx", "batch_features", "burst_buffer", "clusters",
  "comment", "container", "cpus_per_tres", "default_account", "default_qos", "dependency", "exc_nodes", "extra",
  "features", "licenses", "mail_user", "mcs_label", "mem_per_tres", "name", "network", "partition", "prefer", "qos",
  "req_nodes", "reservation", "selinux_context", "std_err", "std_in", "std_out", "tres_bind", "tres_freq", "tres_per_job",
  "tres_per_node", "tres_per_socket", "tres_per_task", "user_name", "wckey", "work_dir",
}
-- Numbers by the value that means "unset" (slurm.h: NO_VAL16, NO_VAL, NO_VAL64; api/init_msg.c says which).
local NO_VAL16, NO_VAL, NO_VAL64 = 65534, 4294967294, 18446744073709551614
local NUMBERS = {
  [NO_VAL16] = {
    "contiguous", "core_spec", "cores_per_socket", "cpus_per_task", "mail_type", "ntasks_per_core", "ntasks_per_node",
    "ntasks_per_socket", "pn_min_cpus", "reboot", "requeue", "shared", "sockets_per_node",
    "thread_spec", "threads_per_core",
  },
  [NO_VAL] = {
    "cpu_freq_gov", "cpu_freq_max", "cpu_freq_min", "delay_boot", "het_job_offset", "max_cpus", "max_nodes",
    "min_cpus", "min_nodes", "nice", "num_tasks", "pn_min_tmp_disk", "priority", "req_switch", "site_factor",
    "time_limit", "time_min", "user_id", "wait4switch",
  },
  [NO_VAL64] = { "min_mem_per_cpu", "min_mem_per_node" },
}
local SHARED_FORCE = 32768 -- slurm.h: the bit of a partition's max_share
-- Numbers for which zero means "unset" too, or in some versions instead.
local NUMBERS_NOT_ZERO = { "argc", "begin_time", "end_time", "immediate", "ntasks_per_board", "ntasks_per_tres",
  "segment_size" }
local BOOLEANS = { "cron_job" }
local ENVIRONMENT = {
  "SECURE_CLASS", "SECURE_RESIDENCY", "SECURE_SCRATCH_SIZE", "SECURE_DATASETS", "SLURM_GET_USER_ENV",
}
-- Any of these shows that the submitter's session came with the job: with --export=NONE or NIL none of them does.
local SESSION = { "HOME", "PATH", "USER", "SHELL", "PWD", "LD_PRELOAD", "LD_LIBRARY_PATH" }
-- What is sent of a stored job, as rec.<name>.
local RECORD = {
  "account", "admin_comment", "alloc_node", "array_job_id", "array_task_id", "batch_features", "comment", "container",
  "curr_dependency", "extra", "features", "het_job_id", "het_job_offset", "job_id", "job_state", "licenses",
  "max_nodes", "mcs_label", "min_nodes", "name", "nodes", "orig_dependency", "origin_cluster", "partition", "priority",
  "qos", "reservation", "restart_cnt", "resv_name", "std_err", "std_in", "std_out", "time_limit", "tres_per_job",
  "tres_per_node", "tres_per_socket", "tres_per_task", "user_id", "user_name", "work_dir",
}
-- What an answer may set.
local SETTABLE = {
  admin_comment = "string", batch_features = "string", extra = "string", features = "string", prefer = "string",
  max_nodes = "number", min_nodes = "number", requeue = "number", shared = "number", time_limit = "number",
}

-- The two numbers that slurmctld understands, fixed now: a global that became nil must not turn into "accept".
-- The user reads "Access/permission denied" for the first of them, "Unspecified error" for the others.
local function first_error(names)
  for _, name in ipairs(names) do
    local value = type(slurm) == "table" and slurm[name]
    if type(value) == "number" and value ~= 0 then
      return value
    end
  end
  return -1
end
local REFUSED = first_error({ "ESLURM_ACCESS_DENIED", "ERROR" })
local SUCCESS = 0

-- The offline bundle's LuaSocket, where the system has none; install.sh puts its prefix in the place of this one.
local bundled = ";/opt/secure-slurm/lua/" .. string.match(_VERSION, "%d+%.%d+") .. "/?"
package.path, package.cpath = package.path .. bundled .. ".lua", package.cpath .. bundled .. ".so"
local loaded, socket = pcall(require, "socket")
local loaded_unix, unix = pcall(require, "socket.unix")
if not (loaded and loaded_unix) then
  -- at start-up this stops slurmctld, which is what a missing filter must do
  error("secure-slurm: LuaSocket is missing: install the package lua-socket for the Lua that Slurm was built with")
end
local new_stream = type(unix) == "table" and unix.stream or unix

-- Configuration ---------------------------------------------------------------------------------------------------

local config, config_read = nil, 0

local function read_config()
  local found = dofile(CONFIG)
  if type(found) ~= "table" or type(found.socket) ~= "string" or type(found.deadline) ~= "number"
    or found.deadline <= 0 or found.deadline > 5 or type(found.demand) ~= "table"
    or (found.untagged_when_down ~= "allow" and found.untagged_when_down ~= "refuse")
    or (found.untagged ~= nil and found.untagged ~= "ask" and found.untagged ~= "local")
    or (found.untagged == "local" and (type(found.policy) ~= "string" or #found.policy ~= 16)) then
    error("secure-slurm: " .. CONFIG .. " is incomplete: run `secure-slurm conf render`")
  end
  return found
end

-- Called where nothing may fail any more.
local function log_error(text)
  pcall(function()
    slurm.log_error("%s", (string.gsub("secure-slurm: " .. tostring(text), "%c", "?")))
  end)
end

-- Read again now and then, so that a partition which demands a tag from today on is known without a restart.
-- A broken file keeps the last good one: the daemon judges by its own policy in any case.
local function refresh_config()
  local now = socket.gettime()
  if now >= config_read and now - config_read < CONFIG_SECONDS then
    return
  end
  config_read = now
  local ok, found = pcall(read_config)
  if ok then
    config = found
  else
    log_error(found)
  end
end

config = read_config()
config_read = socket.gettime()

-- Messages --------------------------------------------------------------------------------------------------------

local function encode(fields)
  local parts, count = {}, 0
  for key, value in pairs(fields) do
    count = count + 1
    parts[#parts + 1] = #key .. ":" .. key .. "," .. #value .. ":" .. value .. ","
  end
  local body = table.concat(parts)
  if count > FIELD_LIMIT or #body > BODY_LIMIT then
    return nil
  end
  return "SS1 " .. #body .. "\n" .. body
end

local function netstring(body, at)
  local digits, start = string.match(body, "^(%d%d?%d?%d?%d?%d?%d?):()", at)
  if not digits then
    return nil
  end
  local stop = start + tonumber(digits)
  if string.sub(body, stop, stop) ~= "," then
    return nil
  end
  return string.sub(body, start, stop - 1), stop + 1
end

local function decode(body)
  local fields, at = {}, 1
  while at <= #body do
    local key, value
    key, at = netstring(body, at)
    if not key then
      return nil
    end
    value, at = netstring(body, at)
    if not value or fields[key] ~= nil then
      return nil
    end
    fields[key] = value
  end
  return fields
end

-- The connection --------------------------------------------------------------------------------------------------

local connection = nil
local timeouts, quiet_until = 0, 0
local asked = 0

local function close()
  if connection then
    pcall(connection.close, connection)
  end
  connection = nil
end

-- Seconds that are left, never more than the deadline even if the clock was set back.
local function left(stop)
  local seconds = stop - socket.gettime()
  if seconds > config.deadline then
    seconds = config.deadline
  end
  return seconds
end

local function wait_until(stop)
  local seconds = left(stop)
  if seconds <= 0 then
    return false
  end
  connection:settimeout(seconds, "t")
  return true
end

-- A kept connection must be open and silent: waiting bytes are an answer that came too late for an earlier job.
local function usable()
  connection:settimeout(0, "t")
  local _, problem, partial = connection:receive(1)
  return problem == "timeout" and (partial == nil or partial == "")
end

local function connect(stop)
  if connection and not usable() then
    close()
  end
  if connection then
    return true
  end
  connection = assert(new_stream())
  if not wait_until(stop) then
    return false, "timeout"
  end
  return connection:connect(config.socket)
end

local function receive_header(stop)
  local line, more = "", HEADER_LEAST
  while string.sub(line, -1) ~= "\n" do
    if #line >= HEADER_LIMIT then
      return nil, "malformed"
    end
    if not wait_until(stop) then
      return nil, "timeout"
    end
    local part, problem = connection:receive(more)
    if not part then
      return nil, problem
    end
    line, more = line .. part, 1
  end
  local size = tonumber(string.match(line, "^SS1 (%d+)\n$"))
  if not size or size > BODY_LIMIT then
    return nil, "malformed"
  end
  return size
end

local function exchange(message, nonce)
  local stop = socket.gettime() + config.deadline
  local ok, problem = connect(stop)
  if not ok then
    return nil, problem
  end
  if not wait_until(stop) then
    return nil, "timeout"
  end
  ok, problem = connection:send(message)
  if not ok then
    return nil, problem
  end
  local size
  size, problem = receive_header(stop)
  if not size then
    return nil, problem
  end
  local body = ""
  if size > 0 then
    if not wait_until(stop) then
      return nil, "timeout"
    end
    body, problem = connection:receive(size)
    if not body then
      return nil, problem
    end
  end
  local answer = decode(body)
  if not answer then
    return nil, "malformed"
  end
  if answer.nonce ~= nonce then
    return nil, "the answer belongs to another request"
  end
  return answer
end

local function new_nonce(now)
  asked = asked + 1
  return string.format("%.0f-%d-%d", now * 1000000, asked, math.random(0, 999999))
end

-- When the daemon last said that it decides by the policy that the configuration was made from, and about which users'
-- jobs it is to be asked all the same: those of whom a tagged job runs.
local confirmed_at, asked_about = nil, ""
local said_at = 0

-- `at`: when the daemon was asked or told what it answers here. What it said before something that is known already is
-- of no use: a confirmation may have lain in the socket for hours.
local function confirm(answer, at)
  -- a day: the clock was set back, and would otherwise let nobody pass here until it is as late again
  if at < said_at and said_at - at < 86400 then
    return
  end
  said_at = at
  confirmed_at = answer.ask_about and answer.policy == config.policy and at or nil
  asked_about = "," .. (answer.ask_about or "") .. ","
end

local function is_confirmed()
  local age = confirmed_at and socket.gettime() - confirmed_at
  return age and age >= 0 and age < CONFIRMED_SECONDS
end

-- The answer's fields, or nil and why there is none.
local function ask(fields)
  local now = socket.gettime()
  if now < quiet_until and quiet_until - now <= QUIET_SECONDS then
    return nil, "it did not answer in time three times, so it is not asked for some seconds"
  end
  local nonce = new_nonce(now)
  fields.nonce = nonce
  local message = encode(fields)
  if not message then
    return nil, "the request is too large"
  end
  local ok, answer, problem = pcall(exchange, message, nonce)
  if not ok then
    answer, problem = nil, answer
  end
  if answer then
    timeouts = 0
    confirm(answer, now)
    return answer
  end
  confirmed_at = nil
  close()
  if problem == "timeout" then
    timeouts = timeouts + 1
    if timeouts >= TIMEOUTS_LIMIT then
      timeouts = 0
      quiet_until = socket.gettime() + QUIET_SECONDS
    end
  end
  return nil, problem
end

-- Notes: what is told to the daemon and not asked ------------------------------------------------------------------
-- They have a connection of their own, on which nobody waits. The daemon confirms how many it has taken; those that a
-- dead daemon has not confirmed are told again to its successor.

local notes = nil -- the connection
local heard = "" -- what has come of the next confirmation
local unconfirmed, told_at, first_note, last_note = {}, {}, 1, 0
local taken = 0 -- how many of this connection's notes the daemon has confirmed

local function close_notes()
  if notes then
    pcall(notes.close, notes)
  end
  notes = nil
end

-- Takes one confirmation, a count of all notes of this connection; false when it is none.
local function take_confirmation(answer)
  local count = answer and answer.verdict == "allow" and tonumber(answer.count)
  if not count or count < taken or count - taken > last_note - first_note + 1 then
    return false
  end
  local at = count > taken and told_at[first_note + count - taken - 1]
  for _ = taken + 1, count do
    unconfirmed[first_note], told_at[first_note] = nil, nil
    first_note = first_note + 1
  end
  taken = count
  if at then
    confirm(answer, at)
  end
  return true
end

-- Takes what the daemon has said so far; false when the connection is of no more use.
local function hear()
  local _, problem, part = notes:receive(BODY_LIMIT)
  heard = heard .. (part or "")
  while heard ~= "" do
    local size, start = string.match(heard, "^SS1 (%d%d?%d?%d?)\n()")
    local stop = size and start + tonumber(size)
    if not size and #heard >= HEADER_LIMIT then
      return false
    end
    if not size or #heard < stop - 1 then
      break
    end
    if not take_confirmation(decode(string.sub(heard, start, stop - 1))) then
      return false
    end
    heard = string.sub(heard, stop)
  end
  return problem == "timeout"
end

-- Whether the whole message lies in the socket now; nobody waits for room.
local function put_note(message)
  local sent, problem, bytes = notes:send(message)
  if not sent and not (problem == "timeout" and bytes == 0) then
    close_notes() -- a part of a message cannot be taken back
  end
  return sent ~= nil
end

-- A new connection, on which every note that is not confirmed is told again.
local function open_notes()
  notes, heard, taken = assert(new_stream()), "", 0
  notes:settimeout(0, "t")
  if not notes:connect(config.socket) then
    return false
  end
  for index = first_note, last_note do
    if not put_note(unconfirmed[index]) then
      return false
    end
    told_at[index] = socket.gettime()
  end
  return true
end

-- Whether the daemon will hear of it. If not, nothing was told.
local function tell_daemon(fields)
  local message = encode(fields)
  if not message then
    return false
  end
  if not notes and not open_notes() then
    close_notes()
    return false
  end
  if last_note - first_note + 1 >= NOTES_LIMIT or not put_note(message) then
    return false
  end
  last_note = last_note + 1
  unconfirmed[last_note], told_at[last_note] = message, socket.gettime()
  return true
end

-- Takes what the daemon has said about earlier notes, before anything rests on what it said.
local function listen()
  if notes then
    local ok, usable_still = pcall(hear)
    if not (ok and usable_still) then
      close_notes()
    end
  end
end

-- What is told to the user ----------------------------------------------------------------------------------------

local function tell(text)
  pcall(function()
    -- everything but line feeds that could reach a terminal as a command goes
    local clean = string.gsub(text, "%c", function(char)
      return char == "\n" and char or "?"
    end)
    slurm.log_user("%s", clean)
  end)
end

local function refuse(rule, message, advice)
  local text = "secure-slurm: " .. message
  if advice and advice ~= "" then
    text = text .. "\nWhat to do: " .. advice
  end
  tell(text .. "\n(rule " .. rule .. ")")
  return REFUSED
end

-- Collecting ------------------------------------------------------------------------------------------------------

local function put(fields, name, value, limit)
  limit = limit or VALUE_LIMIT
  if #value > limit then
    value = string.sub(value, 1, limit)
    fields[name .. ".cut"] = "1"
  end
  fields[name] = value
end

local function number(value)
  return string.format("%.0f", value)
end

local function put_any(fields, name, value)
  if type(value) == "string" then
    put(fields, name, value)
  elseif type(value) == "number" then
    put(fields, name, number(value))
  elseif value == true then
    put(fields, name, "1")
  end
end

local function put_number(fields, job, name, unset)
  local value = job[name]
  if type(value) == "number" and value ~= unset then
    put(fields, name, number(value))
  end
end

local function collect_job(fields, job)
  for _, name in ipairs(STRINGS) do
    local value = job[name]
    if type(value) == "string" then
      put(fields, name, value, LIMITS[name])
    end
  end
  for unset, names in pairs(NUMBERS) do
    for _, name in ipairs(names) do
      put_number(fields, job, name, unset)
    end
  end
  for _, name in ipairs(NUMBERS_NOT_ZERO) do
    if job[name] ~= 0 and job[name] ~= NO_VAL then
      put_number(fields, job, name, NO_VAL16)
    end
  end
  for _, name in ipairs(BOOLEANS) do
    if job[name] == true or job[name] == 1 then
      fields[name] = "1"
    end
  end
end

-- What begins a line of a burst buffer's (burst_buffer.conf(5): the plugins datawarp and lua).
local STAGING = { "#BB", "#DW" }

-- Every line of the script that starts with #SECURE, wherever it is.
local function collect_script(fields, script)
  fields.has_script = "1"
  for _, word in ipairs(STAGING) do
    if string.sub(script, 1, #word) == word or string.find(script, "\n" .. word, 1, true) then
      fields.script_burst_buffer = "1"
    end
  end
  local lines, size, at = {}, 0, 1
  if string.sub(script, 1, 7) ~= "#SECURE" then
    at = string.find(script, "\n#SECURE", 1, true)
    at = at and at + 1
  end
  while at do
    local stop = string.find(script, "\n", at, true) or #script + 1
    size = size + stop - at + 1
    if #lines >= LINES_LIMIT or size > VALUE_LIMIT then
      fields["script_lines.overflow"] = "1"
      break
    end
    lines[#lines + 1] = string.sub(script, at, stop - 1)
    at = string.find(script, "\n#SECURE", stop, true)
    at = at and at + 1
  end
  if #lines > 0 then
    fields.script_lines = table.concat(lines, "\n")
  end
end

-- srun and salloc send no environment, and each look at it would cost a line in slurmctld's log.
local function has_environment(job, script)
  if script ~= nil then
    return true
  end
  local offset = job.het_job_offset
  return type(offset) == "number" and offset ~= NO_VAL
end

local function collect_environment(fields, job)
  local environment = has_environment(job, job.script) and job.environment
  if not environment then
    return
  end
  fields.has_environment = "1"
  for _, name in ipairs(ENVIRONMENT) do
    local value = environment[name]
    if type(value) == "string" then
      put(fields, "env." .. string.lower(name), value)
    end
  end
  for _, name in ipairs(SESSION) do
    if environment[name] ~= nil then
      fields.user_environment = "1"
      break
    end
  end
end

-- Who owns the jobs that a dependency names: "afterok:12:13_4,after:14+5". slurm.jobs lacks what was submitted in the
-- second of its last reading (job_submit_lua.c), as `sbatch -d afterok:$(sbatch ...)` does all the time: such a job is
-- passed over. One that is gone Slurm itself refuses.
local function collect_dependency(fields)
  local text = fields.dependency
  if not text or text == "" then
    return
  end
  local jobs = type(slurm) == "table" and slurm.jobs
  local found, seen = {}, {}
  for id in string.gmatch(string.gsub(text, "[_+][%d%*]+", ""), "%d+") do
    local uid
    if type(jobs) == "table" then
      local job = jobs[id]
      uid = job and type(job.user_id) == "number" and number(job.user_id)
    else
      uid = "?" -- whose it is cannot be told at all
    end
    if uid and not seen[uid] then
      seen[uid] = true
      found[#found + 1] = uid
    end
  end
  if #found > 0 then
    put(fields, "dependency_uids", table.concat(found, ","))
  end
end

-- Whether jobs of a partition cannot have nodes of their own: OverSubscribe=FORCE outdoes --exclusive (cons_tres).
-- A partition that is not known, or does not say, counts as one. Lua 5.1 has no operators for bits.
local function shares_by_force(part)
  local share = part and part.max_share
  return type(share) ~= "number" or math.floor(share / SHARED_FORCE) % 2 == 1
end

local function is_default(part)
  return part.flag_default == true or (type(part.flag_default) == "number" and part.flag_default ~= 0)
end

-- Those of the job's partitions (all, when not even the default is known) that share their nodes by force.
local function collect_sharing(fields, known, partitions)
  local found = {}
  if partitions == "" then
    for name, part in pairs(known) do
      found[#found + 1] = shares_by_force(part) and name or nil
    end
  end
  for name in string.gmatch(partitions, "[^,]+") do
    found[#found + 1] = shares_by_force(known[name]) and name or nil
  end
  if #found > 0 then
    put(fields, "forced_sharing", table.concat(found, ","))
  end
end

-- The default partition, the nodes of each partition that demands a tag, and where nodes are shared by force. The list
-- has only the partitions that the job's owner may use. `stored`: the partitions of a job that is changed.
local function collect_partitions(fields, part_list, stored)
  local demanding, known, lines = {}, {}, {}
  for key, part in pairs(type(part_list) == "table" and part_list or {}) do
    local name = part.name or key
    known[name] = part
    if is_default(part) then
      put(fields, "default_partition", name)
    end
    if config.demand[name] then
      local nodes = part.nodes or ""
      demanding[name] = nodes
      lines[#lines + 1] = name .. "=" .. nodes
    end
  end
  if #lines > 0 then
    put(fields, "demand_nodes", table.concat(lines, "\n"), NODES_LIMIT)
  end
  local asked = fields.partition ~= "" and fields.partition or stored
  collect_sharing(fields, known, asked or fields.default_partition or "")
  return demanding
end

-- When the daemon does not answer ---------------------------------------------------------------------------------

local function match_hosts(name, pattern)
  local open = string.find(pattern, "[", 1, true)
  if not open then
    return name == pattern
  end
  local close_at = string.find(pattern, "]", open, true)
  if not close_at or string.sub(name, 1, open - 1) ~= string.sub(pattern, 1, open - 1) then
    return close_at == nil
  end
  local rest, tail = string.sub(name, open), string.sub(pattern, close_at + 1)
  for range in string.gmatch(string.sub(pattern, open + 1, close_at - 1), "[^,]+") do
    local low, high = string.match(range, "^(%d+)-(%d+)$")
    low = low or string.match(range, "^%d+$")
    if not low then
      return true -- not a list as Slurm writes them: assume the worst
    end
    for length = #low, #rest do
      local digits = string.match(string.sub(rest, 1, length), "^%d+$")
      if not digits then
        break
      end
      local value = tonumber(digits)
      if value >= tonumber(low) and value <= tonumber(high or low)
        and string.format("%0" .. #low .. ".0f", value) == digits
        and match_hosts(string.sub(rest, length + 1), tail) then
        return true
      end
    end
  end
  return false
end

local function in_hosts(name, list)
  if string.lower(list) == "all" then
    return true
  end
  local item, depth = "", 0
  for char in string.gmatch(list .. ",", ".") do
    depth = depth + ((char == "[" and 1) or (char == "]" and -1) or 0)
    if char == "," and depth == 0 then
      if item ~= "" and match_hosts(name, item) then
        return true
      end
      item = ""
    else
      item = item .. char
    end
  end
  return depth ~= 0
end

-- A host without a name: reverse DNS failed, and slurmctld took the address. It may be any node. So may one that EC2
-- calls by its address or its instance: which node that is, the daemon knows (slurm_hooks/hostnames.py).
local function is_nameless(host)
  if type(host) ~= "string" or host == "" or string.find(host, ":", 1, true) then
    return true
  end
  local short = string.lower(string.match(host, "^[^.]+") or host)
  return string.find(host, "^%d+%.%d+%.%d+%.%d+$") ~= nil
    or string.find(short, "^ip%-%d+%-%d+%-%d+%-%d+$") ~= nil
    or string.find(short, "^i%-%x%x%x%x%x%x%x%x%x*$") ~= nil
end

local function from_demanding_node(host, demanding)
  if is_nameless(host) then
    return next(config.demand) ~= nil
  end
  local short = string.match(host, "^[^.]+") or host
  for _, nodes in pairs(demanding) do
    if in_hosts(host, nodes) or in_hosts(short, nodes) then
      return true
    end
  end
  return false
end

local function demands(partitions)
  for name in string.gmatch(partitions, "[^,]+") do
    if config.demand[name] then
      return true
    end
  end
  return false
end

local function mentions(text)
  return type(text) == "string" and string.find(string.lower(text), "secure-slurm", 1, true) ~= nil
end

-- Whether a job would hand its nodes to another one, which may carry a tag.
local function expands(fields)
  return fields["dependency.cut"] ~= nil
    or (fields.dependency ~= nil and string.find(string.lower(fields.dependency), "expand", 1, true) ~= nil)
end

-- Fields that hint at a tag by being there: what asks for one, and what was cut, of which nobody knows what it says.
local TRACES = { "script_lines", "script_lines.overflow" }
local TAG_VARIABLES = { "SECURE_CLASS", "SECURE_RESIDENCY", "SECURE_SCRATCH_SIZE", "SECURE_DATASETS" }
for _, name in ipairs(TAG_VARIABLES) do
  TRACES[#TRACES + 1] = "env." .. string.lower(name)
end
for _, name in ipairs({ "extra", "admin_comment", "partition", "default_partition", "dependency", "alloc_node",
  "user_name", "script_lines", "demand_nodes" }) do
  TRACES[#TRACES + 1] = name .. ".cut"
end

local function has_any(fields, names)
  for _, name in ipairs(names) do
    if fields[name] ~= nil then
      return true
    end
  end
  return false
end

-- The partitions that a job would go to; any that demands a tag when not even the default is known.
local function demands_tag(asked, default)
  local partitions = (asked and asked ~= "" and asked) or default or ""
  if not string.find(partitions, "[^,]") then
    return next(config.demand) ~= nil
  end
  return demands(partitions)
end

-- Whether anything about a new job hints at a tag; in doubt it does. Whatever the engine refuses about a job without a
-- tag must be a trace: tests/unit/decision/test_untagged.py compares the two.
local function submit_trace(fields, demanding)
  return has_any(fields, TRACES) or mentions(fields.extra) or mentions(fields.admin_comment)
    or demands_tag(fields.partition, fields.default_partition) or from_demanding_node(fields.alloc_node, demanding)
    or expands(fields)
end

local function modify_trace(fields)
  return mentions(fields.extra) or mentions(fields.admin_comment) or mentions(fields["rec.extra"])
    or mentions(fields["rec.admin_comment"]) or demands(fields.partition or "")
    or demands(fields["rec.partition"] or (next(config.demand) or "")) or expands(fields)
end

local function unanswered(problem, trace, verb)
  log_error("no decision about a " .. verb .. ": " .. tostring(problem))
  if config.untagged_when_down == "allow" and not trace then
    return SUCCESS
  end
  return refuse("daemon.down", "the decision daemon did not answer, so nothing can be decided about this job",
    "try again in a minute; if it stays so, tell an admin to look at secure-slurm's decision daemon")
end

-- Obeying ---------------------------------------------------------------------------------------------------------

local function apply(answer, job)
  local values = {}
  for key, value in pairs(answer) do
    local name = string.match(key, "^set%.(.+)$")
    if name then
      local kind = SETTABLE[name]
      if kind == "number" then
        value = string.match(value, "^%d+$") and tonumber(value)
      end
      if not kind or not value then
        error("the answer sets " .. name .. ", which it may not")
      end
      values[name] = value
    end
  end
  for name, value in pairs(values) do
    job[name] = value
    -- an unknown field is ignored by Slurm with a line in its log only
    if job[name] ~= value then
      error("slurmctld did not take " .. name)
    end
  end
end

local function obey(answer, job)
  if answer.verdict == "allow" then
    apply(answer, job)
    if answer.message and answer.message ~= "" then
      tell("secure-slurm: " .. answer.message)
    end
    return SUCCESS
  end
  if answer.verdict == "refuse" then
    return refuse(answer.rule or "unknown", answer.message or "the job was refused", answer.advice)
  end
  return refuse("engine.no-verdict", "the decision daemon did not say yes, so the job was refused",
    "tell an admin: secure-slurm's decision daemon answered without a verdict")
end

-- What the verdict on a job without a tag rests on, and nothing else: a fifth of what is collected to ask.
local UNTAGGED = { "extra", "admin_comment", "dependency", "partition", "alloc_node", "user_name" }
local known_default = nil

-- The partition that jobs without one go to. Looked for only when it is not the one of last time.
local function default_partition(part_list)
  local part = known_default and part_list[known_default]
  if not (part and is_default(part)) then
    known_default = nil
    for name, each in pairs(part_list) do
      if is_default(each) then
        known_default = each.name or name
      end
    end
  end
  return known_default
end

-- Whether script or environment ask for a tag, well-formed or not.
local function asks_for_tag(job)
  local script = job.script
  if type(script) == "string"
    and (string.sub(script, 1, 7) == "#SECURE" or string.find(script, "\n#SECURE", 1, true)) then
    return true
  end
  local environment = has_environment(job, script) and job.environment
  for _, name in ipairs(environment and TAG_VARIABLES or {}) do
    if environment[name] ~= nil then
      return true
    end
  end
  return false
end

local node_lists, node_lists_known = {}, 0 -- by host and node list: whether it is one of them

local function is_listed(host, nodes)
  local known = node_lists[host]
  if not known or known[nodes] == nil then
    if node_lists_known >= 1000 then
      node_lists, node_lists_known, known = {}, 0, nil
    end
    known = known or {}
    node_lists[host], node_lists_known = known, node_lists_known + 1
    local name, list = string.lower(host), string.lower(nodes)
    known[nodes] = in_hosts(name, list) or in_hosts(string.match(name, "^[^.]+") or name, list)
  end
  return known[nodes]
end

-- Whether a job comes from a node of any of the partitions, so perhaps from inside a job; in doubt it does.
local function is_node(host, part_list)
  if is_nameless(host) then
    return true
  end
  for _, part in pairs(part_list) do
    if is_listed(host, part.nodes or "all") then
      return true
    end
  end
  return false
end

-- Whether an untagged job may pass without being asked about, and was told to the daemon.
local function passes_here(job, part_list, submit_uid)
  listen()
  if config.untagged ~= "local" or not is_confirmed() or type(part_list) ~= "table" then
    return false
  end
  local fields = { verb = "note", submit_uid = number(submit_uid), policy = config.policy }
  put_number(fields, job, "user_id", NO_VAL)
  if not fields.user_id or string.find(asked_about, "," .. fields.user_id .. ",", 1, true) then
    return false
  end
  for _, name in ipairs(UNTAGGED) do
    local value = job[name]
    if type(value) == "string" then
      put(fields, name, value)
    end
  end
  if not fields.partition or fields.partition == "" then
    local default = default_partition(part_list)
    if default then
      put(fields, "default_partition", default)
    end
  end
  local demanding, lines = {}, {}
  for name in pairs(config.demand) do
    local part = part_list[name]
    if part then
      demanding[name] = part.nodes or ""
      lines[#lines + 1] = name .. "=" .. demanding[name]
    end
  end
  if #lines > 0 then
    put(fields, "demand_nodes", table.concat(lines, "\n"), NODES_LIMIT)
  end
  if submit_trace(fields, demanding) or is_node(fields.alloc_node, part_list) or asks_for_tag(job) then
    return false
  end
  fields.nonce = new_nonce(socket.gettime())
  local ok, told = pcall(tell_daemon, fields)
  if not ok then
    close_notes()
    log_error(told)
  end
  return ok and told == true
end

-- Runs `body` so that nothing but the number SUCCESS, returned on purpose, can accept.
local function guarded(body, ...)
  local ok, result = pcall(body, ...)
  if ok and result == SUCCESS then
    return SUCCESS
  end
  if not ok then
    close()
    close_notes()
    log_error(result)
    pcall(refuse, "engine.error", "the submission filter failed, so the job was refused",
      "tell an admin: slurmctld's log has the details")
  end
  return REFUSED
end

local function submit(job, part_list, submit_uid)
  refresh_config()
  if passes_here(job, part_list, submit_uid) then
    return SUCCESS
  end
  local fields = { verb = "submit", submit_uid = number(submit_uid) }
  collect_job(fields, job)
  local script = job.script
  if type(script) == "string" then
    collect_script(fields, script)
  end
  collect_environment(fields, job)
  collect_dependency(fields)
  local demanding = collect_partitions(fields, part_list)
  local answer, problem = ask(fields)
  if not answer then
    return unanswered(problem, submit_trace(fields, demanding), "submission")
  end
  return obey(answer, job)
end

local function modify(job, record, part_list, modify_uid)
  refresh_config()
  local fields = { verb = "modify", modify_uid = number(modify_uid) }
  collect_job(fields, job)
  collect_dependency(fields)
  for _, name in ipairs(RECORD) do
    put_any(fields, "rec." .. name, record[name])
  end
  collect_partitions(fields, part_list, fields["rec.partition"])
  local answer, problem = ask(fields)
  if not answer then
    return unanswered(problem, modify_trace(fields), "modification")
  end
  return obey(answer, job)
end

function slurm_job_submit(job_desc, part_list, submit_uid)
  return guarded(submit, job_desc, part_list, submit_uid)
end

function slurm_job_modify(job_desc, job_rec, part_list, modify_uid)
  return guarded(modify, job_desc, job_rec, part_list, modify_uid)
end

return SUCCESS
