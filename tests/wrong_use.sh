#!/bin/sh
# tests/wrong_use.sh: whatever is asked for wrongly ends with the right status and one line that says what is wrong and
# with which option or file, and leaves no file. $B and $BIN come from `make check`; $B/tool/tiny_base makes a
# model, two UniCon checkpoints and a ControlNet.
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
depth=$tmp/depth
id=$tmp/id
edges=$tmp/edges
wide=$tmp/wide
cross=$tmp/cross
"$tool" sd1 "$base" && "$tool" depth "$depth" && "$tool" id "$id" && "$tool" control "$edges" || exit 1
"$tool" wide "$wide" && "$tool" cross "$cross" || exit 1
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
    "$sample" --help | sed -nE 's/^ +(-[a-z], )?(--[a-z-]+)( ((\[NAME=])?[A-Z][]A-Z:[,]*))?( .*)?$/\2 \4/p'
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
mkdir lora
cp "$depth/xy_lora/pytorch_lora_weights.safetensors" lora
# a white picture of one pixel
{
    printf '\211PNG\15\12\32\12\0\0\0\15IHDR\0\0\0\1\0\0\0\1\10\0\0\0\0:~\233U\0\0\0'
    printf '\15IDATx\1\1\2\0\375\377\0\377\1\1\1\0`\207\22\265\0\0\0\0IEND\256B`\202'
} >white.png
cp -r "$depth" part
cp -r "$depth" bare
cp -r "$depth" hollow
cp -r "$depth" said
rm -r part/yx_lora bare/model.pth hollow/xy_lora/* said/y_lora
printf '<svg/>' >drawn.svg
# shellcheck disable=SC2086
"$sample" $small -q --width 24 -o wide.png >/dev/null || exit 1
cp -r "$edges" other
sed -i 's/"cross_attention_dim":64/"cross_attention_dim":1024/' other/config.json
cp -r "$edges" pooled
sed -i 's/"layers_per_block":2/"global_pool_conditions":true/' pooled/config.json
cp -r "$edges" empty-control
rm empty-control/diffusion_pytorch_model.safetensors
mini lora_controlnet >lora-control.safetensors
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
    ok "each number as '$given'" each_wrong 'N A E S C R BYTES' "'$given'|want a" $small
done
given=nonsense
ok 'each choice as nonsense' each_wrong WORD "'nonsense'| or " --base "$base"
given=
ok 'each path as nothing' each_wrong 'PATH IMAGE FILE DIR PATH[:W] [NAME=]PATH [NAME=]IMAGE [NAME=]PATH[:W]' "''" \
    --base "$base"
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
    options | awk '$2 ~ /^(\[NAME=\])?(PATH|IMAGE|FILE|DIR|PATH\[:W\])$/ { print $1 }' |
        grep -vxE -- '--(base|out|save-latents|sheet)'
}
has_inputs() {
    [ "$(inputs | grep -c .)" -ge 10 ]
}
ok 'the files that are read are known' has_inputs
for file in nowhere empty text dir; do
    for name in $(inputs); do
        with=
        what=${name#--}
        case $name in
            --vae) what=VAE ;;
            --lora) what=LoRA ;;
            --unicon) what='--unicon|UniCon checkpoint' ;;
            --controlnet) what='--controlnet|ControlNet' ;;
            --x-mask) with='--x good.png' ;;
            --y) what=--y with="--unicon $depth" ;;
            --y-mask) with="--unicon $depth --y good.png" ;;
        esac
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

# ---- pairs ----
no_checkpoint() {
    while read -r name value; do
        # shellcheck disable=SC2086
        wrong 2 "--$name|pair|--unicon PATH" $small "--$name" "$value" || return 1
    done
}
ok 'each option of a pair without a checkpoint' no_checkpoint <<end
y good.png
y-mask good.png
y-noise 0.5
y-prompt fox
task y2x
schedule x=1:0
pair 1,1
joint-scale 2
cond-guidance 1
end
# shellcheck disable=SC2086
{
    pair="$small --unicon $depth"
    two="$pair --unicon $id"
    ok '--show-schedule without a checkpoint' wrong 2 '--show-schedule|--unicon PATH' $small --show-schedule
    ok 'a checkpoint with a name that is not there' wrong 1 "--unicon|'nowhere'|no such directory" \
        $small --unicon a=nowhere
    ok 'a checkpoint with a name and no path' wrong 1 "--unicon|''|no such directory" $small --unicon a=
    ok 'a base as a checkpoint' wrong 1 "--unicon|'$base'|base model, not a UniCon checkpoint|xy_lora" \
        $small --unicon "$base"
    ok 'a file as a checkpoint' wrong 1 "--unicon|'latents'|single file|directory with xy_lora" $small --unicon latents
    ok 'a LoRA as a checkpoint' wrong 1 "--unicon|'lora'|plain LoRA, not a UniCon checkpoint|xy_lora" \
        $small --unicon lora
    ok 'a checkpoint without a part' wrong 1 "--unicon|'part'|no folder 'yx_lora'" $small --unicon part
    ok 'a checkpoint without its projections' wrong 1 "--unicon|'bare'|neither model.pth nor model.safetensors" \
        $small --unicon bare
    ok 'too many checkpoints' wrong 2 '--unicon|8 checkpoints|at most 7' $two $two $two $two
    ok 'a checkpoint twice' wrong 2 "--unicon|'depth'|NAME=PATH" $pair --unicon "$depth"
    ok 'a name twice' wrong 2 "--unicon|'id'|NAME=PATH" $small --unicon "id=$depth" --unicon "$id"
    ok 'a picture of no checkpoint' wrong 2 "--y 'id=good.png'|no checkpoint 'id'|'depth' (y)" $pair --y id=good.png
    ok 'a mask of no checkpoint' wrong 2 "--y-mask 'id=good.png'|no checkpoint 'id'|'depth' (y)" \
        $pair --y good.png --y-mask id=good.png
    ok 'a level of no checkpoint' wrong 2 "--y-noise 'id=1'|no checkpoint 'id'|'depth' (y)" $pair --y-noise id=1
    ok 'weights of no checkpoint' wrong 2 "--pair 'id=1,1'|no checkpoint 'id'|'depth' (y)" $pair --pair id=1,1
    ok 'guidance of no checkpoint' wrong 2 "--cond-guidance 'id=1'|no checkpoint 'id'|'depth' (y)" \
        $pair --cond-guidance id=1
    ok 'a checkpoint of a wider base' wrong 1 "--unicon '$wide'|64 channels where this one has 32|trained on" \
        $small --unicon "$wide"
    ok 'a checkpoint of a base with a wider text' wrong 1 "--unicon '$cross'|128 numbers a token|64|trained on" \
        $small --unicon "$cross"
    ok 'a checkpoint with an empty folder' wrong 1 "--unicon|'hollow'|folder 'xy_lora' has no .safetensors" \
        $small --unicon hollow
    ok 'a checkpoint without what it names' wrong 1 "--unicon|'said'|no folder 'y_lora'|configuration names" \
        $small --unicon said
    ok 'a mask of another shape' wrong 2 "--y-mask 'good.png'|16 x 16|24 x 16|another shape" \
        $pair --width 24 --height 32 --y wide.png --y-mask good.png
    ok "x's mask of another shape" wrong 2 "--x-mask 'wide.png'|24 x 16|16 x 16|another shape" \
        $small --height 32 --x good.png --x-mask wide.png
    ok 'a picture of a kind that is not read' wrong 1 "--y|'drawn.svg'|no PNG, JPEG or TIFF" $pair --y drawn.svg
    ok '--y twice' wrong 2 "--y is given twice|'depth'" $pair --y good.png --y good.png
    ok '--y twice, by two names' wrong 2 "--y is given twice|'depth'" $two --y y=good.png --y depth=good.png
    for name in --y --y-mask --y-noise --pair; do
        value=good.png
        [ $name != --y-noise ] || value=1
        [ $name != --pair ] || value=1,1
        ok "two checkpoints and $name without a name" wrong 2 "$name '$value'|of which|NAME=|'depth'|'id'" \
            $two $name $value
        ok "two checkpoints and $name of a third" wrong 2 "$name 'y3=$value'|no checkpoint 'y3'|'depth' (y)|'id' (y2)" \
            $two $name y3=$value
    done
    for level in 2 -0.1 abc nan 0.5x; do
        ok "--y-noise $level" wrong 2 "--y-noise '$level'|number from 0 to 1" $pair --y good.png --y-noise $level
    done
    ok '--y-noise of nothing' wrong 2 "--y-noise ''" $pair --y good.png --y-noise ''
    ok 'a little noise on no y' wrong 2 'y begins|no picture|--y IMAGE' $pair --steps 5 --y-noise 0.5
    ok 'a little noise on no y2' wrong 2 'y2 begins|no picture|--y id=IMAGE' $two --steps 5 --y-noise id=0.5
    ok 'a little noise on no x' wrong 2 '--x-noise|--x IMAGE' $pair --x-noise 0.5
    ok 'a task without its picture' wrong 2 'y begins|no picture|--y IMAGE' $pair --task y2x
    ok 'a schedule without its picture' wrong 2 'x begins|no picture|--x IMAGE' $pair --steps 5 \
        --schedule 'x=0.5:0 y=1:0'
    ok '--y-mask without a picture' wrong 2 '--y-mask|--y IMAGE' $pair --y-mask good.png
    ok "--y-mask without this one's picture" wrong 2 '--y-mask|--y IMAGE' \
        $two --y depth=good.png --y-mask id=good.png
    ok 'everything given, nothing drawn' wrong 2 'nothing is drawn|--x-noise 1' $pair --x good.png --y good.png
    ok 'a task that there is not' wrong 2 "--task 'y2y'|y2x, x2y, joint, coarse-y, coarse-x or noisy-x2y" \
        $pair --task y2y
    ok 'a task of three' wrong 2 '--task|one checkpoint|--schedule' $two --task joint
    ok 'a task and a schedule' wrong 2 '--task|--schedule|one of them' $pair --task joint --schedule 'x=1:0 y=1:0'
    ok 'a task and a level' wrong 2 '--task|levels|one of them' $pair --task joint --y-noise 1
    ok 'a schedule and a level' wrong 2 '--schedule|levels|one of them' $pair --schedule 'x=1:0 y=1:0' --x-noise 1
    for weights in 1 a,b '1,' ,1 1,2,3 nan,1 1,inf 1e99,1 '1;1'; do
        ok "--pair $weights" wrong 2 "--pair '$weights'|two numbers" $pair --pair "$weights"
    done
    ok '--pair of nothing' wrong 2 "--pair ''" $pair --pair ''
    for guidance in 1: abc -1 101 nan 1:2 1:2,3,4 1:a,b 1:1,inf 1,2 depth=; do
        ok "--cond-guidance $guidance" wrong 2 "--cond-guidance '$guidance'|number from 0 to 100|C:WX,WY" \
            $pair --cond-guidance "$guidance"
    done
    ok '--cond-guidance of nobody' wrong 2 "--cond-guidance 'id=1'|no checkpoint 'id'" $pair --cond-guidance id=1
    ok '--cond-guidance of x' wrong 2 "--cond-guidance 'x=1'|no checkpoint 'x'" $two --cond-guidance x=1
    many=$(for i in 1 2 3 4 5 6 7 8 9; do printf -- '--cond-guidance %s ' $i; done)
    ok 'nine times --cond-guidance' wrong 2 '--cond-guidance|more than 8 times' $pair $many
    ok 'pndm' wrong 2 '--sampler pndm|pairs' $pair --sampler pndm
}

# ---- guidance ----
# shellcheck disable=SC2086
{
    half="$pair --y good.png --y-mask good.png"
    ok 'guidance of nobody' wrong 2 "--guide 'z'|no input of that name|'x', 'y' (depth)" $half --guide z
    ok 'guidance of y alone' wrong 2 "--guide 'y'|there is 'x'" $small --guide y
    ok 'guidance without a picture' wrong 2 '--guide y|no picture|--y IMAGE' $pair --guide y
    ok 'guidance of the picture of another' wrong 2 '--guide id|y2 has no picture|--y NAME=IMAGE' \
        $two --y depth=good.png --guide id
    ok 'guidance of what is held' wrong 2 '--guide y|y has no noise|a mask' $pair --y good.png --guide y
    ok 'guidance of an x without noise' wrong 2 '--guide x|x has no noise' $small --x good.png --x-noise 0 --guide x
    ok 'guidance to nothing' wrong 2 '--guide y|mask of y is white everywhere' \
        $pair --y good.png --y-mask white.png --guide y
    ok 'a schedule that guides nobody' wrong 2 '--schedule says guide|a picture and a mask' \
        $pair --schedule 'x=1:0 y=1:0 guide'
    ok 'a list that guides nobody' wrong 2 '--schedule says guide|a picture and a mask' $pair --y good.png \
        --y-mask white.png --schedule '[(0,1),(0,1),1]'
    for range in '' 0 0,1,2 1,0 0.5,0.5 -1,1 0,2 a,b nan,1 ' 0,1x'; do
        ok "--guide-range '$range'" wrong 2 "--guide-range '$range'|A,B" $half --guide y --guide-range "$range"
    done
    ok 'guidance in no row' wrong 2 '--guide-range 0.7,1|none of the 3 rows' \
        $half --steps 3 --guide y --guide-range 0.7,1 --schedule 'x=1:0.4 y=1:0.4 guide | x=0.4:0 y=0.4:0'
    ok 'guidance of x in no row' wrong 2 '0.3 to 0.6|1 rows' \
        $small --x good.png --x-mask good.png --guide x --guide-range 0.3,0.6
    ok 'decay of another optimizer' wrong 2 '--guide-decay|adamw|sgd' $half --guide y --guide-opt sgd --guide-decay 0.1
}
how_to_guide() {
    for how in opt=sgd lr=1 steps=2 range=0,0.5 decay=0.1; do
        # shellcheck disable=SC2086
        wrong 2 "--guide-${how%=*}|say what is guided|--guide x" $small --guide-$how || return 1
    done
}
ok 'how to guide, but not whom' how_to_guide
ok_schedule() {                             # ok_schedule TEXT WORDS: of x and y, wrongly
    # shellcheck disable=SC2086
    ok "--schedule '$1'" wrong 2 "--schedule '$1'|$2" $pair --schedule "$1"
}
ok_schedule 'x=0:1 y=1:0' "segment 1, input 'x'|rises"
ok_schedule 'x=2:0 y=1:0' "segment 1, input 'x'|level 2 is not in [0,1]"
ok_schedule 'x=1:0 z=1:0' "segment 1|no input 'z'|'x', 'y'"
ok_schedule 'x=1:0' "segment 1|'y' has no level"
ok_schedule 'x=1:0 y=1:0 x=0' "segment 1|'x' has two levels"
ok_schedule 'x=1:0.5 y=1:0' "segment 1, input 'x'|stay noisy"
ok_schedule 'x=1:a y=1:0' "segment 1|numbers from 0 to 1"
ok_schedule 'x=1:0 y=1:0 slow' "segment 1|'slow'|guide, free"
ok 'a mask of a held x' wrong 2 '--x-mask|x has no noise|does nothing' $pair --x good.png --x-mask good.png --task x2y
ok 'a mask of an x without noise' wrong 2 '--x-mask|does nothing' $small --x good.png --x-mask good.png --x-noise 0
ok_schedule '[(1,0),(0,1),0]' "segment 1, input 'x'|rises"
ok_schedule '[(0,1),(0,1)' 'segment 1|want'
ok_schedule '' 'segment 1|no level'
# '|' parts words above, so what begins at 0.4 after 0.5 is told apart here
# shellcheck disable=SC2086
ok 'a schedule with a gap' wrong 2 "--schedule|segment 2, input 'x'|begins at 0.4|ends at 0.5|begin where" \
    $pair --schedule 'x=1:0.5 y=1:0|x=0.4:0 y=0'

# ---- ControlNets ----
# shellcheck disable=SC2086
{
    control="$small --controlnet $edges"
    both="$control --unicon $depth"
    ok 'a ControlNet with a name that is not there' wrong 1 "--controlnet|'nowhere'|No such file" \
        $small --controlnet a=nowhere
    ok 'a base as a ControlNet' wrong 1 "--controlnet|'$base'|a base model, not a ControlNet" \
        $small --controlnet "$base"
    ok 'a checkpoint as a ControlNet' wrong 1 "--controlnet|'$depth'|config.json" $small --controlnet "$depth"
    ok 'a ControlNet as a checkpoint' wrong 1 "--unicon|'$edges'|xy_lora" $small --unicon "$edges"
    ok 'a ControlNet as a base' wrong 1 "'$edges|model_index.json" --base "$edges"
    ok 'latents as a ControlNet' wrong 1 "--controlnet|'latents'|no ControlNet in it" $small --controlnet latents
    ok 'a Control-LoRA' wrong 1 "--controlnet|'lora-control.safetensors'|Control-LoRA|not supported" \
        $small --controlnet lora-control.safetensors
    ok 'a ControlNet for another base' wrong 1 "--controlnet|'other'|1024, the base 64|made for another base" \
        $small --controlnet other --y good.png
    ok 'a ControlNet of another kind' wrong 1 "--controlnet|'pooled'|global_pool_conditions" $small --controlnet pooled
    ok 'a ControlNet without weights' wrong 1 "--controlnet|'empty-control'|neither diffusion_pytorch_model" \
        $small --controlnet empty-control
    ok 'a ControlNet without its picture' wrong 2 "--controlnet|'edges' has no picture|--y IMAGE" $control
    ok 'one of two without its picture' wrong 2 "--controlnet|'b' has no picture|--y b=IMAGE" \
        $control --controlnet "b=$edges" --y edges=good.png
    ok 'a pair and a ControlNet without its picture' wrong 2 "'edges' has no picture|--y edges=IMAGE" \
        $both --y depth=good.png
    ok 'a picture of no ControlNet' wrong 2 "--y 'b=good.png'|no checkpoint 'b'|'edges'" $control --y b=good.png
    ok 'a picture of neither' wrong 2 "--y 'b=good.png'|no checkpoint 'b'|'depth' (y), 'edges'" $both --y b=good.png
    ok 'a picture without a name beside a pair' wrong 2 "--y 'good.png'|of which|'depth'|'edges'" $both --y good.png
    ok "a ControlNet's picture twice" wrong 2 "--y is given twice|'edges'" $control --y good.png --y edges=good.png
    ok 'five ControlNets' wrong 2 '--controlnet|5 of them|at most 4' $control --controlnet a --controlnet b \
        --controlnet c --controlnet d
    ok 'a ControlNet twice' wrong 2 "--controlnet|'edges'|NAME=PATH" $control --controlnet "$edges"
    ok "a ControlNet of a checkpoint's name" wrong 2 "--controlnet|'depth'|NAME=PATH" \
        $small --unicon "$depth" --controlnet "depth=$edges"
    for name in --y-mask --y-noise --pair; do
        value=good.png
        [ $name != --y-noise ] || value=1
        [ $name != --pair ] || value=1,1
        ok "$name of a ControlNet" wrong 2 "$name 'edges=$value'|'edges' is a ControlNet|no noise" \
            $both --y edges=good.png --y depth=good.png $name edges=$value
        ok "$name with a ControlNet alone" wrong 2 "$name|pair|--unicon PATH" $control --y good.png $name $value
    done
    ok 'a task with a ControlNet alone' wrong 2 '--task|pair|--unicon PATH' $control --y good.png --task y2x
    for weight in abc nan 1e999 0.5x; do
        ok "a ControlNet of weight $weight" wrong 2 "--controlnet '$edges:$weight'|'$weight' is not a weight" \
            $control:$weight --y good.png
    done
    for range in 1 0,2 -1,1 0.5,0.5 0.7,0.3 a,b 0,1,2 , nan,1; do
        ok "--control-range $range" wrong 2 "--control-range '$range'|two numbers from 0 to 1" \
            $control --y good.png --control-range "$range"
    done
    ok '--control-range without a ControlNet' wrong 2 '--control-range|--controlnet PATH' $small --control-range 0,0.5
    ok 'a ControlNet of a held x' wrong 2 '--controlnet|x has no noise|does nothing' \
        $both --y edges=good.png --x good.png --task x2y
    ok 'a ControlNet of an x without noise' wrong 2 '--controlnet|x has no noise|does nothing' \
        $control --y good.png --x good.png --x-noise 0
}

# ---- sweeps ----
# shellcheck disable=SC2086
{
    ok '--sweep-steps without a sweep' wrong 2 '--sweep-steps|--sweep' $small --sweep-steps 3
    for sweep in cfg cfg= =1:2 cfg=1 cfg=1:a cfg=1:101 cfg,eta=1:2 cfg=1,2:3 prompt=1:2 bogus=1:2 width=8:16 \
        cfg,cfg=1,1:2,2; do
        ok "--sweep $sweep" wrong 2 "--sweep '$sweep'" $small --sweep "$sweep"
    done
    ok 'a sweep of a checkpoint that is none' wrong 2 "--sweep, point 0 (id.y-noise 0)|no checkpoint 'id'" \
        $pair --y good.png --sweep id.y-noise=0:1
    ok 'a sweep that ends with everything given' wrong 2 '--sweep, point 2 (x-noise 0, y-noise 0)|nothing is drawn' \
        $pair --steps 3 --x good.png --y good.png --sweep x-noise,y-noise=1,0:0,0 --sweep-steps 3
    ok 'a sweep to where a picture is missing' wrong 2 '--sweep, point 1 (y-noise 0.5)|y begins|no picture' \
        $pair --steps 3 --sweep y-noise=1:0 --sweep-steps 3
    ok 'a sweep of levels and a task' wrong 2 '--sweep, point 0 (x-noise 1)|--task|one of them' \
        $pair --x good.png --task joint --sweep x-noise=1:0
    ok 'a sweep of another sampler' wrong 2 '--sweep, point 1 (eta 1)|ddim|euler' \
        $small --sampler euler --sweep eta=0:1 --sweep-steps 2
}

# ---- where results go ----
for out in a.gif a dir/; do
    ok "--sheet $out" wrong 2 "--sheet|'$out'|.png, .jpg or .tif" --base "$base" --sheet $out
done
# shellcheck disable=SC2086
{
    ok '--sheet in a directory that is not there' wrong 1 "--sheet 'no/a.png'|'no'|No such" $small --sheet no/a.png
    ok '--sheet over the picture' wrong 2 "--sheet 'out.png'|a picture of the run" $small --sheet out.png
    ok '--sheet over one of the pictures' wrong 2 "--sheet 'a-1.png'|a picture of the run" \
        $small --count 2 -o a.png --sheet a-1.png
    ok 'more pictures than a sheet has room for' wrong 2 '--sheet|rows of pictures|64 rows of 64' \
        $small --count 5000 --sheet s.png
}
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
