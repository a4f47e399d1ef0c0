# Turns values.yaml into the rows of a Markdown table. A value is documented by the comment "# -- ..." above it; a documented
# key without a scalar is a block, whose inner lines are its default.
function flush_block() { if (block != "") { print "| `" block "` | see values.yaml | " text " |"; block = "" } }
/^ *# -- / { sub(/^ *# -- /, ""); comment = $0; next }
/^ *#/ { if (comment != "") { sub(/^ *# /, ""); comment = comment " " $0 } next }
/^ *$/ { comment = ""; next }
{
    match($0, /^ */)
    level = RLENGTH / 2
    if (block != "" && level > block_level) next
    flush_block()
    if (!match($0, /^ *[a-zA-Z]+:/)) next
    key = substr($0, level * 2 + 1, RLENGTH - level * 2 - 1)
    value = substr($0, RLENGTH + 2)
    path[level] = key
    name = path[0]
    for (i = 1; i <= level; i++) name = name "." path[i]
    gsub(/\|/, "\\|", comment)
    if (comment != "" && value != "") print "| `" name "` | `" value "` | " comment " |"
    else if (comment != "") { block = name; block_level = level; text = comment }
    comment = ""
}
END { flush_block() }
