#!/bin/sh
# tests/wrong_use.sh: whatever is asked for wrongly ends with the right status and one line that says what is wrong and
# with which option or file, and leaves no file. $B and $BIN come from `make check`; $B/tool/tiny_base makes a model.
. "$(dirname "$0")/lib.sh"
cd "$(dirname "$0")/.." || exit 1
root=$(pwd)
bin=${BIN:-bin}
tool=${B:-build/release}/tool/tiny_base
case $bin in /*) ;; *) bin=$root/$bin ;; esac
sample=$bin/unicon-sample
tmp=$(mktemp -d "${TMPDIR:-/tmp}/wrong_use.XXXXXX") || exit 1
trap 'chmod -R u+w "$tmp"; rm -rf "$tmp"' EXIT
base=$tmp/base
work=$tmp/work
mkdir "$work" "$work/dir" "$work/dir.png" "$work/shut" || exit 1
"$tool" sd1 "$base" || exit 1
small="--base $base --width 16 --height 16 --steps 1"

state() {
    (cd "$work" && find . | sort && find . -type f -exec cksum {} + | sort)
}

# wrong STATUS 'WORDS|WORDS' ARGUMENT...: it ends with STATUS, says nothing on standard output and one line on standard
# error with each of the words in it, and changes no file.
wrong() {
    status=$1
    words=$2
    shift 2
    state >"$tmp/before"
    # shellcheck disable=SC2086 # $as is nothing or several words
    (cd "$work" && $as "$sample" "$@") >"$tmp/out" 2>"$tmp/err"
    rc=$?
    state >"$tmp/after"
    bad=
    [ $rc -eq "$status" ] || bad="$bad; status $rc, not $status"
    [ ! -s "$tmp/out" ] || bad="$bad; it printed results"
    [ "$(wc -l <"$tmp/err")" -eq 1 ] || bad="$bad; not one line"
    grep -q '^unicon-sample: ' "$tmp/err" || bad="$bad; it does not say who speaks"
    cmp -s "$tmp/before" "$tmp/after" || bad="$bad; files changed: $(diff "$tmp/before" "$tmp/after" | tr '\n' ' ')"
    echo "$words" | tr '|' '\n' >"$tmp/words"
    while read -r w; do
        grep -qF -- "$w" "$tmp/err" || bad="$bad; '$w' is not in it"
    done <"$tmp/words"
    [ -z "$bad" ] || {
        echo "unicon-sample $*$bad"
        cat "$tmp/err"
        false
    }
}
as=

# Options of --help: "--NAME VALUE", VALUE empty for flags.
options() {
    "$sample" --help | sed -nE 's/^ +(-[a-z], )?(--[a-z-]+)( ([A-Z][A-Z:[]*[]A-Z]*))?( .*)?$/\2 \4/p'
}
with_value() {
    options | while read -r name value; do
        case " $1 " in *" $value "*) [ -z "$value" ] || echo "$name" ;; esac
    done
}
each_wrong() {                              # each_wrong 'VALUES' WORDS ARGUMENT...: every such option given $given
    each_values=$1
    each_words=$2
    shift 2
    for name in $(with_value "$each_values"); do
        wrong 2 "$name|$each_words" "$@" "$name" "$given" || return 1
    done
}

mini() {                                    # a safetensors file of one tensor
    json="{\"$1\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}"
    # shellcheck disable=SC2059
    printf "\\$(printf %o ${#json})\\0\\0\\0\\0\\0\\0\\0%s\\0\\0\\0\\0" "$json"
}

# ---- the model is good, so what follows fails for its own reason; some of what it makes is used below ----
good() {
    # shellcheck disable=SC2086
    (cd "$work" && "$sample" $small -q -o good.png --save-latents latents) >/dev/null
}
ok 'rightly used, it draws a picture' good
cd "$work" || exit 1
cp "$root/tests/fuzz/corpus/f_png/extras.png" foreign.png
cp "$root/tests/fuzz/corpus/f_png/spec.png" other.png
echo words >text
: >empty
mini conditioner.embedders.0.weight >xl.safetensors
mini text_model.encoder.layers.0.weight >text.safetensors
head -c 100000 "$base/unet/diffusion_pytorch_model.safetensors" >cut.safetensors
mkdir xl sd3 half
echo '{"_class_name":"StableDiffusionXLPipeline","unet":["diffusers","UNet2DConditionModel"],
"text_encoder_2":["transformers","CLIPTextModelWithProjection"]}' >xl/model_index.json
echo '{"_class_name":"StableDiffusion3Pipeline","transformer":["diffusers","SD3Transformer2DModel"]}' \
    >sd3/model_index.json
cp -r "$base/model_index.json" "$base/scheduler" "$base/tokenizer" "$base/text_encoder" "$base/vae" half
mkdir half/unet
cp "$base/unet/config.json" half/unet
echo '{"kind":"sample","version":1,"steps":"many"}' >bad.json
echo '{"kind":"sample","version":99}' >later.json
cd "$root" || exit 1

# ---- options ----
has_options() {
    [ "$(options | grep -c .)" -gt 30 ] && [ "$(with_value N | grep -c .)" -gt 5 ] && with_value 'PATH[:W]' | grep .
}
ok 'the options of --help are read' has_options
ok 'unknown option' wrong 2 'no option --bogus|--help' --bogus
ok 'nearly an option' wrong 2 '--bse|did you mean --base' --bse x
ok 'beginning of two options' wrong 2 '--pr could be|--prompt|--prediction' --pr x
ok 'unknown letter' wrong 2 'no option -z' -z
ok 'no option at all' wrong 2 "'fox.png' is no option" fox.png
no_value() {
    for name in $(options | awk 'NF > 1 { print $1 }'); do
        wrong 2 "$name needs a value" "$name" || return 1
    done
}
ok 'each option without its value' no_value
flag_value() {
    for name in $(options | awk 'NF == 1 { print $1 }'); do
        wrong 2 "$name takes no value" "$name=yes" || return 1
    done
}
ok 'each flag with a value' flag_value
for given in abc '' -1 1e9 nan 0x10 99999999999999999999 5x ' 5'; do
    # shellcheck disable=SC2086
    ok "each number as '$given'" each_wrong 'N A E S BYTES' "'$given'|want a" $small
done
given=nonsense
ok 'each choice as nonsense' each_wrong WORD "'nonsense'| or " --base "$base"
given=
ok 'each path as nothing' each_wrong 'PATH IMAGE FILE DIR PATH[:W]' "''" --base "$base"
ok 'a prompt that is no UTF-8' wrong 2 '--prompt|UTF-8' --base "$base" --prompt "$(printf 'a\377b')"

# ---- the base ----
ok 'no base' wrong 2 'no base model|--base PATH'
ok 'no such base' wrong 1 "--base 'runwayml/nowhere'|no such file" --base runwayml/nowhere
ok 'a base that is text' wrong 1 "'text'|safetensors" --base text
ok 'a base that is empty' wrong 1 "'empty'|safetensors" --base empty
ok 'a directory that is no model' wrong 1 'dir/model_index.json|No such file' --base dir
ok 'SDXL as a directory' wrong 1 "'xl|StableDiffusionXLPipeline|text_encoder_2|only Stable Diffusion 1.x and 2.x" \
    --base xl
ok 'SD3 as a directory' wrong 1 "'sd3|StableDiffusion3Pipeline|transformer|only" --base sd3
ok 'SDXL as a file' wrong 1 "'xl.safetensors'|Stable Diffusion XL|only" --base xl.safetensors
ok 'a text encoder alone' wrong 1 "'text.safetensors'|text encoder alone|only" --base text.safetensors
ok 'a UNet alone' wrong 1 "UNet of a diffusers directory alone" --base "$base/unet/diffusion_pytorch_model.safetensors"
ok 'half a file' wrong 1 "'cut.safetensors'" --base cut.safetensors
ok 'a model without weights' wrong 1 "'half|diffusion_pytorch_model.safetensors|half/unet" --base half

# ---- files ----
inputs() {
    options | awk '$2 ~ /^(PATH|IMAGE|FILE|DIR|PATH\[:W\])$/ { print $1 }' |
        grep -vxE -- '--(base|out|save-latents)'
}
has_inputs() {
    [ "$(inputs | grep -c .)" -ge 7 ]
}
ok 'the files that are read are known' has_inputs
for file in nowhere empty text dir; do
    for name in $(inputs); do
        with=
        [ "$name" != --x-mask ] || with='--x good.png'
        what=${name#--}
        case $what in vae) what=VAE ;; lora) what=LoRA ;; esac
        # shellcheck disable=SC2086
        ok "$name $file" wrong 1 "$what|'$file" $small $with "$name" $file
    done
done
ok 'a VAE that is none' wrong 1 "VAE 'latents'" --base "$base" --vae latents
ok 'a LoRA that is none' wrong 1 "LoRA 'latents'|nothing in the file is a LoRA" --base "$base" --lora latents
for weight in abc nan 1e999 0.5x; do
    ok "a LoRA of weight $weight" wrong 2 "--lora 'latents:$weight'|'$weight' is not a weight|PATH:NUMBER" \
        --base "$base" \
        --lora "latents:$weight"
done
ok 'a LoRA without its weight' wrong 2 "--lora 'latents:'|no weight" --base "$base" --lora latents:
ok 'noise of another size' wrong 1 "--noise 'latents'|(1,4,2,2)|(4,3,2)" --base "$base" --width 16 --height 24 \
    --noise latents
ok 'noise of another name' wrong 1 "--noise 'text.safetensors'|no tensor named 'x'" \
    --base "$base" --noise text.safetensors
ok "another program's picture" wrong 1 "--replay 'foreign.png'|no spec" --replay foreign.png
ok "a picture with another program's spec" wrong 1 "--replay 'other.png'|spec|does not say" --replay other.png
ok 'a spec with a wrong value' wrong 1 "--replay 'bad.json'|steps" --replay bad.json
ok 'a spec of a later version' wrong 1 "--replay 'later.json'|99" --replay later.json

# ---- what does not go together ----
# shellcheck disable=SC2086
{
    ok 'a width between two multiples' wrong 2 '20 x 16|multiples of 8|24 x 16' $small --width 20
    ok 'a height between two multiples' wrong 2 '16 x 23|multiples of 8|16 x 24' $small --height 23
    ok 'a side that is too small' wrong 2 "--width '4'|from 8 to 8192" $small --width 4
    ok '--x-noise without --x' wrong 2 '--x-noise|--x IMAGE' $small --x-noise 0.5
    ok '--x-mask without --x' wrong 2 '--x-mask|--x IMAGE' $small --x-mask good.png
    ok '--eta with another sampler' wrong 2 '--eta|ddim|euler' $small --sampler euler --eta 0.5
    ok 'more layers left out than there are' wrong 2 '--clip-skip 3|3 layers' $small --clip-skip 3
    for sampler in ddim ddpm dpm++2m pndm; do
        ok "1000 steps of $sampler" wrong 2 "$sampler|1000 steps|take fewer steps" \
            $small --sampler $sampler --steps 1000
    done
    ok 'too little memory' wrong 1 '1 picture at a time|1.0 MiB is allowed|smaller size' $small --memory 1M
    ok 'too little memory, by a byte' wrong 1 '1 bytes is allowed' $small --memory 1
    ok 'too little memory for a plan' wrong 1 '3 pictures at a time|smaller --batch' \
        $small --count 3 --batch 3 --memory 1M \
        --plan
    ok 'too many threads' wrong 2 "--threads '1025'|1024" $small --threads 1025
    for device in gpu null cpux '' cpu:none; do
        ok "device '$device'" wrong 2 "--device|'$device'" $small --device "$device"
    done
}

# ---- where results go ----
for out in a.gif a dir/ dir/a.png.txt; do
    ok "--out $out" wrong 2 "--out|'$out'|.png, .jpg or .tif" --base "$base" -o $out
done
# shellcheck disable=SC2086
for place in '--out png' '--save-latents st'; do
    name=${place% *}
    a=a.${place#* }
    ok "$name in a directory that is not there" wrong 1 "$name 'no/$a'|'no'|No such" $small $name no/$a
    ok "$name in a file" wrong 1 "$name 'text/$a'|'text'|Not a directory" $small $name text/$a
done
# shellcheck disable=SC2086
{
    ok '--out is a directory' wrong 2 "--out 'dir.png'|directory" $small -o dir.png
    ok '--save-latents is a directory' wrong 2 "--save-latents 'dir'|directory" $small --save-latents dir
    ok '--save-latents names a directory' wrong 2 "--save-latents 'dir/'|directory" $small --save-latents dir/
    ok '--save-latents over the picture' wrong 2 "--save-latents 'out.png'|picture|.safetensors" \
        $small --save-latents out.png
}
chmod a-w "$work/shut"
chmod -R a+rX "$tmp"
user="$(command -v setpriv) --reuid=65534 --clear-groups"
if [ "$(id -u)" -ne 0 ]; then
    # shellcheck disable=SC2086
    ok '--out where nothing may be written' wrong 1 "--out 'shut/a.png'|'shut'|denied" $small -o shut/a.png
elif $user test -x "$sample" -a -r "$base/model_index.json" 2>/dev/null; then
    as=$user
    # shellcheck disable=SC2086
    ok '--out where nothing may be written' wrong 1 "--out 'shut/a.png'|'shut'|denied" $small -o shut/a.png
    as=
else
    skip '--out where nothing may be written' 'root may write everywhere'
fi

# ---- devices that this machine may not have ----
# shellcheck disable=SC2086
if (cd "$work" && "$sample" $small --plan --device cuda) >/dev/null 2>&1; then
    skip '--device cuda' 'there is one'
else
    ok '--device cuda' wrong 1 "--device|'cuda'|use cpu" $small --device cuda
fi
done_testing
