"""divs2.py DENSE OUT...: loss and divergence on validation text, windows of 1024 and 256 tokens."""
import sys, torch
torch.set_num_threads(1)
from pruner_zero.models.load import load_model
from pruner_zero.calibration.windows import take_windows
from pruner_zero.text.mixture import load_mixture
names=sys.argv[1:]
ms=[load_model(n,'bfloat16') for n in names]
torch.set_grad_enabled(False)
for L,N in ((1024,10),(256,24)):
    for t in ('wiki.valid.raw','builtin:pydoc'):
        w=take_windows(load_mixture({t:1.0}),ms[0],N,L,3).tokens
        kl=[0]*len(ms);ce=[0]*len(ms)
        for x in w:
            p=None
            for i,m in enumerate(ms):
                l=m.model(x[None]).logits[0].float().log_softmax(-1)
                if p is None: p=l
                ce[i]+=float(-l[:-1].gather(1,x[1:,None]).mean())/len(w)
                kl[i]+=float((p.exp()*(p-l)).sum(-1).mean())/len(w)
        print(L,t,'loss',[round(c,4) for c in ce],'kl',[round(k,4) for k in kl[1:]],flush=True)
