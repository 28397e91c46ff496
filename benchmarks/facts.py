"""facts65.py MODEL NW NE FILE SPARSITY: masks by expressions with facts of matrices, by hand."""
import sys, os, torch, time
torch.set_num_threads(1)
from dataclasses import replace
from types import MappingProxyType, SimpleNamespace
import pruner_zero.metric.expression as EX
from pruner_zero.metric.operators import Shape
new=dict(EX.TERMINALS)
for n in ('L','Y','Z','N','M'): new[n]=EX.Statistic(Shape.SCALAR,'fact')
P=MappingProxyType(new)
import pruner_zero.metric.grammar as G, pruner_zero.metric.scoring as S, pruner_zero.metric.metric as MM, pruner_zero.pruning.masks as M
for mod in (EX,G,S,MM,M):
    if hasattr(mod,'TERMINALS'): mod.TERMINALS=P
from pruner_zero.models.load import load_model
from pruner_zero.models.matrices import find_matrices
from pruner_zero.calibration.windows import take_windows
from pruner_zero.calibration.calibrate import calibrate, open_store
from pruner_zero.text.mixture import load_mixture
from pruner_zero.pruning.masks import DenseStatistics, reached_score
from pruner_zero.metric.metric import Metric
name, NW, NE, file, sp = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], float(sys.argv[5])
os.chdir('FOLDER/data/t')
m=load_model(name,'bfloat16'); mats=find_matrices(m.model); model=m.model
w=take_windows(load_mixture({'self':1.0}),m,192,256,0)
cal=replace(w,tokens=w.tokens[:NW])
K=['self','builtin:pydoc','wiki.valid.raw']
LEN=int(os.environ.get('LEN',256))
wj=take_windows(load_mixture({'self':1.0}),m,24,LEN,7) if LEN!=256 else w
judge=[wj.tokens[-NE:] if k=='self' else take_windows(load_mixture({k:1.0}),m,min(192,49152//LEN),LEN,0).tokens[-NE:] for k in K]
lines=[l.strip() for l in open('FOLDER/'+file) if l.strip() and l[0]!='#']
metrics=[Metric.of(l) for l in lines]
facts={'L','Y','Z','N','M'}
kinds=EX.collected_for(set().union(*(x.expression.terminals for x in metrics))-facts)|{'X'}
REFS=None
if os.environ.get('VO'):
    with torch.no_grad(): REFS=[[model(x[None]).logits[0].float().log_softmax(-1).bfloat16() for x in j] for j in judge]
    from pruner_zero.pruning.permute import turn_values
    from pruner_zero.models.couplings import find_couplings
    cs=find_couplings(model,'heads'); grams={}; hs=[]
    def hook(n):
        def f(mo,a):
            z=a[0].detach().float().flatten(0,1); grams[n]=grams.get(n,0)+z.T@z
        return f
    for c in cs: hs.append(model.get_submodule(c.consumer).register_forward_pre_hook(hook(c.consumer)))
    with torch.no_grad():
        for x in cal.tokens[:24]: model(x[None])
    for h in hs: h.remove()
    with torch.no_grad():
        for c in cs: turn_values(model.get_submodule(c.producers[-1]),model.get_submodule(c.consumer),c.count,grams[c.consumer])
        q=[model(x[None]).logits[0].float().log_softmax(-1) for x in judge[0]]
        print('turned; KL to before %.5f'%(sum(float((p.float().exp()*(p.float()-b)).sum(-1).mean()) for p,b in zip(REFS[0],q))/len(q)),flush=True)
store=open_store(m,cal); t=time.time(); calibrate(m,cal,kinds,store); print('statistics %.0f s'%(time.time()-t),flush=True)
stats=DenseStatistics(store,0.01)
def read(mat): return stats.read(mat,kinds)
blocks=1+max(x.block for x in mats)
out=torch.zeros(blocks); al=torch.zeros(blocks); cnt=torch.zeros(blocks)
t=time.time()
for b in range(blocks):
    of=[x for x in mats if x.block==b]; sc=[]
    for x in of:
        W=x.weight.detach().float(); c=read(x)
        X=c.terminals({'X'},x.weight.detach())['X']
        sc.append((W.abs()*X).flatten())
        if 'Z' in ''.join(lines):
            ev=torch.linalg.svdvals(W).square().sort().values
            k=len(ev)//2; al[b]+=1+k/(ev[-k:]/ev[-k-1]).log().sum(); cnt[b]+=1
    sc=torch.cat(sc); out[b]=(sc>5*sc.mean()).float().mean()
print('facts %.0f s'%(time.time()-t), 'outliers',[round(float(v),4) for v in out],'alpha',[round(float(v),2) for v in al/cnt.clamp(min=1)],flush=True)
unit=lambda v:(v-v.min())/(v.max()-v.min()).clamp(min=1e-9)
Y,Z=unit(out),unit(al/cnt.clamp(min=1))
one=lambda v: torch.tensor([[float(v)]])
def terms(x,need):
    c=read(x); o,i=x.weight.shape
    f={'L':one((x.block+.5)/blocks),'Y':one(Y[x.block]),'Z':one(Z[x.block]),'N':one(i),'M':one(o)}
    return {'W':x.weight.detach().float().abs(),**c.terminals(set(need)-facts-{'W','S'},x.weight.detach()),**{k:v for k,v in f.items() if k in need}}
torch.set_grad_enabled(False)
W0={x.name:x.weight.detach().clone() for x in mats}
ref=REFS or [[model(x[None]).logits[0].float().log_softmax(-1).bfloat16() for x in j] for j in judge]
def kl():
    v=[]
    for js,rs in zip(judge,ref):
        s=0.
        for x,d in zip(js,rs):
            q=model(x[None]).logits[0].float().log_softmax(-1); p=d.float(); s+=float((p.exp()*(p-q)).sum(-1).mean())/len(js)
        v.append(s)
    return v
for line,e in zip(lines,metrics):
    t=time.time(); need=e.expression.terminals; g=torch.Generator().manual_seed(0)
    sc=lambda x: reached_score(e.expression,terms(x,need))
    ss=[]
    for x in mats:
        s=sc(x).flatten(); ss.append(s[torch.randint(len(s),(max(1,len(s)//256),),generator=g)])
    thr=torch.cat(ss).double().quantile(sp).float() if sum(map(len,ss))<16e6 else None
    sh=[]
    for x in mats:
        k=sc(x)>thr; sh.append(1-float(k.float().mean())); x.weight.copy_(W0[x.name]*k)
    v=kl()
    for x in mats: x.weight.copy_(W0[x.name])
    print('%-70s %s  mean %.4f  zeros per matrix %.2f..%.2f  %.0f s'%(line,' / '.join('%.3f'%a for a in v),sum(v)/3,min(sh),max(sh),time.time()-t),flush=True)
